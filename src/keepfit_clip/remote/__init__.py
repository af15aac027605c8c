"""Object storage, through fsspec: `opening` reads what lies there, `paths` finds it by listings of folders."""
