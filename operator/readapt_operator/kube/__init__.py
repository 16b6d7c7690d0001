"""The one door to the API server: ``port`` says what can be asked, ``client`` asks a real server."""
