"""What a route takes and answers: endpoints, parameters of an address, the OpenAPI document."""
