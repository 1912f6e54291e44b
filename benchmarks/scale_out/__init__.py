"""One run on several Celery workers: how much faster four are than one."""
