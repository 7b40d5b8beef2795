"""More than one core: engines in processes of their own, with the face of engines in this one."""
