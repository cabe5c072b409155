"""Reading requests and wording responses, whatever the endpoint."""
