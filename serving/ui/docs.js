// The page of the routes: Swagger over our document, with the key that the main page was given.
import { KEY_NAME } from "./shared/api.js";

window.SwaggerUIBundle({
  url: "../v1/openapi.json",
  dom_id: "#swagger",
  deepLinking: true,
  presets: [window.SwaggerUIBundle.presets.apis],
  requestInterceptor(request) {
    const key = sessionStorage.getItem(KEY_NAME);
    if (key && !request.headers.Authorization) request.headers.Authorization = `Bearer ${key}`;
    return request;
  },
});
