"""Reading a request and wording an answer, whatever the endpoint."""
