"""The local HTTP server: OpenAI's and Ollama's interfaces and a web page, over one engine thread."""
