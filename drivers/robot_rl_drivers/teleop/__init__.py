"""Devices that a person drives an arm with: SpaceMouse, gamepad, keyboard; and a script that acts
as a person would. Each is found by its name through the entry point group ``robot_rl.teleops``."""
