"""Python values as JSON and back: encoding, decoding, what would be lost on the way, fingerprints of arguments."""
