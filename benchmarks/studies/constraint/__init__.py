"""How far may a policy go from the data?"""
