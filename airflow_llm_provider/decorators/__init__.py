"""Functions as tasks: ``@task.vllm_batch``."""
