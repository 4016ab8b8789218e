"""Description of routes: endpoints, parameters of an address, the OpenAPI document."""
