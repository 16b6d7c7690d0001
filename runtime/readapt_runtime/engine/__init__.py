"""The engine: admit -> schedule -> run -> settle over one page pool."""
