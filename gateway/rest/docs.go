package rest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/swaggest/swgui/v5/static"

	"shop.example/gateway/ingress"
	"shop.example/gen/asyncapi"
	"shop.example/gen/openapi"
)

// ownDocs are our files of the page /docs. The document is shown by Swagger UI, which comes from a module.
//
//go:embed docs
var ownDocs embed.FS

// docsPolicy lets the page load files of the gateway only. Swagger UI has its icons in data: URLs.
var docsPolicy = []string{"script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"}

// file is a file that is served as it is. It is safe for concurrent use.
type file struct {
	contentType string
	policy      []string // of a page: what it may load
	body        []byte
	gzipped     bool
	etag        string
}

func newFile(contentType string, body []byte) file {
	sum := sha256.Sum256(body)
	return file{contentType: contentType, body: body, etag: hex.EncodeToString(sum[:8])}
}

// handleDocs serves the API's documents and the page that shows them.
func handleDocs(mux *runtime.ServeMux) error {
	const html, css, js = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8"
	files := map[string]file{
		"/openapi.json":  newFile("application/json", openapi.Shop),
		"/asyncapi.yaml": newFile("application/yaml", asyncapi.Shop),
	}
	var failed []error
	add := func(path, contentType string, from interface {
		ReadFile(name string) ([]byte, error)
	}, name string) {
		body, err := from.ReadFile(name)
		failed = append(failed, err)
		f := newFile(contentType, body)
		f.gzipped = strings.HasSuffix(name, ".gz")
		files[path] = f
	}
	add("/docs", html, ownDocs, "docs/docs.html")
	add("/docs/docs.css", css, ownDocs, "docs/docs.css")
	add("/docs/docs.js", js, ownDocs, "docs/docs.js")
	add("/docs/swagger-ui.css", css, static.FS, "swagger-ui.css.gz")
	add("/docs/swagger-ui-bundle.js", js, static.FS, "swagger-ui-bundle.js.gz")
	add("/docs/favicon.png", "image/png", static.FS, "favicon-32x32.png")
	for path, f := range files {
		if f.contentType == html {
			f.policy = docsPolicy
		}
		failed = append(failed, mux.HandlePath(http.MethodGet, path, f.serve))
	}
	return errors.Join(failed...)
}

// serve is a runtime.HandlerFunc.
func (f file) serve(w http.ResponseWriter, r *http.Request, _ map[string]string) {
	header, body, etag := w.Header(), f.body, f.etag
	header.Set("Content-Type", f.contentType)
	header.Set("Cache-Control", "no-cache") // to be revalidated each time: it changes with the gateway
	if len(f.policy) > 0 {
		ingress.AllowPage(w, f.policy...)
	}
	if f.gzipped {
		header.Set("Vary", "Accept-Encoding")
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			header.Set("Content-Encoding", "gzip")
		} else {
			body, etag = gunzip(body), etag+"-plain"
		}
	}
	header.Set("ETag", `"`+etag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// gunzip is for the few clients without compression. An embedded file is never broken.
func gunzip(body []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	return plain
}
