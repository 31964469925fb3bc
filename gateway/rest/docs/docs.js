SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});

// Swagger UI gives its lists no names, which screen readers need.
new MutationObserver(() => {
  for (const list of document.querySelectorAll("#docs select:not([aria-label])")) {
    list.setAttribute("aria-label", list.closest("[data-param-name]")?.dataset.paramName ?? "Server");
  }
}).observe(document.getElementById("docs"), {childList: true, subtree: true});
