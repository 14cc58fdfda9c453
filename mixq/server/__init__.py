"""The local HTTP server: OpenAI's API, Ollama's API and a web page, over one engine thread."""
