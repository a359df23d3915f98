"""Python values as JSON and back: encoding, decoding, detection of losses, fingerprints of arguments."""
