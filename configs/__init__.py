"""One file for each data set and task; `VARIANTS` in it are sizes and schedules. Installed as `maskdino_configs`."""
