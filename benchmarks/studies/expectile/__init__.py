"""What do expectiles buy IQL: maxima within the data, without lucky samples?"""
