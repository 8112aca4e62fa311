from typing import *  # noqa: F403 - whoever checks types takes these names for those of `typing`
