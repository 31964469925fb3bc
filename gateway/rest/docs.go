package rest

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/klauspost/compress/gzip"
	"github.com/swaggest/swgui/v5/static"

	"shop.example/gateway/ingress"
	"shop.example/gen/asyncapi"
	"shop.example/gen/openapi"
)

// ownDocs are our own files of the page /docs. Swagger UI, which shows the document, comes from a module.
//
//go:embed docs
var ownDocs embed.FS

// docsPolicy lets the page load files of the gateway only. Swagger UI has its icons in data: URLs.
var docsPolicy = []string{"script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"}

// File is a static file, which is sent compressed to clients that accept it. It is safe for concurrent use.
type File struct {
	contentType string
	policy      []string // of a page: what it may load
	plain       []byte   // nil if it is kept compressed only
	gzipped     []byte   // nil if it is short
	etag        string
}

// NewFile returns a file with this media type and content.
func NewFile(contentType string, body []byte) File {
	sum := sha256.Sum256(body)
	f := File{contentType: contentType, plain: body, etag: hex.EncodeToString(sum[:8])}
	if len(body) >= minCompressed {
		f.gzipped = compress(body)
	}
	return f
}

// gzippedFile returns a file that is embedded compressed. It is large, and hardly ever sent otherwise.
func gzippedFile(contentType string, body []byte) File {
	f := NewFile(contentType, body)
	f.plain, f.gzipped = nil, body
	return f
}

// handleDocs serves the API's documents and the page that shows them.
func handleDocs(mux *runtime.ServeMux) error {
	const html, css, js = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8"
	files := map[string]File{
		"/openapi.json":  NewFile("application/json", openapi.Shop),
		"/asyncapi.yaml": NewFile("application/yaml", asyncapi.Shop),
	}
	var failed []error
	add := func(path, contentType string, from interface {
		ReadFile(name string) ([]byte, error)
	}, name string) {
		body, err := from.ReadFile(name)
		failed = append(failed, err)
		files[path] = NewFile(contentType, body)
		if strings.HasSuffix(name, ".gz") {
			files[path] = gzippedFile(contentType, body)
		}
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
		failed = append(failed, mux.HandlePath(http.MethodGet, path, func(w http.ResponseWriter, r *http.Request, _ map[string]string) { f.Serve(w, r) }))
	}
	return errors.Join(failed...)
}

// Serve sends the file. A browser may store it, but asks each time whether it has changed.
func (f File) Serve(w http.ResponseWriter, r *http.Request) {
	header, body, etag := w.Header(), f.plain, f.etag
	header.Set("Content-Type", f.contentType)
	header.Set("Cache-Control", "no-cache")
	if len(f.policy) > 0 {
		ingress.AllowPage(w, f.policy...)
	}
	switch {
	case f.gzipped != nil && acceptsGzip(r.Header):
		header.Set("Content-Encoding", "gzip")
		body, etag = f.gzipped, etag+gzipSuffix
	case f.plain == nil:
		body = gunzip(f.gzipped)
	}
	if f.gzipped != nil {
		header.Add("Vary", "Accept-Encoding")
	}
	header.Set("ETag", quoted(etag))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// gunzip decompresses an embedded file, for the few clients that do not accept gzip.
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
