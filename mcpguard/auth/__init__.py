"""Who a verified token names: its file, the keys that verify it, and the settings that say which are trusted."""
