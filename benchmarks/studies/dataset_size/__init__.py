"""Does more data help SAC offline?"""
