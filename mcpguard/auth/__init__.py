"""The verified token that names the user: its file, the keys that verify it, and the settings of `[identity.jwt]`."""
