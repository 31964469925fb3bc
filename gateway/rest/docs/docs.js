SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  // OpenAPI 2 knows no bearer tokens, only headers: the word before the token is added for those who leave it out.
  requestInterceptor(request) {
    const token = request.headers.Authorization;
    if (token && !/^bearer /i.test(token)) request.headers.Authorization = "Bearer " + token.trim();
    return request;
  },
});
