"""Why is learning from other policies' data hard?"""
