"""Every method of the installed PEFT as an ftrt method, `peft:NAME`."""

__all__: list[str] = []
