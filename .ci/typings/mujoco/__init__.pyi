# mujoco 3.3.0 ships its classes in C extensions without types: to pyright all of it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
