"""CoRIT: deepfake and AI-image forensics."""

__version__ = "0.1.0"
