class DecodingError(Exception):
    pass
