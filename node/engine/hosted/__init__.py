"""Models that a server holds: anyone that speaks the OpenAI API or llama-server's, elsewhere or in this process."""
