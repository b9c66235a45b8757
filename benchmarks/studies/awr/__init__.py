"""Which parts of AWR matter?"""
