package http

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"

	"github.com/fewbit/fewbit/internal/engine/fake"
)

// fuzzed is a server of every route, whose caller is an administrator on
// loopback.
func fuzzed(f *testing.F) *fixture {
	x := newFixture(f, map[string]fake.Model{"letters": lettersModel(), "echo": {Spec: echoSpec()}}, nil)
	x.models.prep["letters"] = letters{labels: []string{"low", "high"}}
	return x
}

// check sends a request into the server and checks what comes back: no panic, no
// internal error, and each error in its form.
func (f *fixture) check(t *testing.T, r *http.Request) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), listenerKey{}, listener{loopback: true, admin: true}), 5*time.Second)
	defer cancel()
	w := httptest.NewRecorder()
	cut := func() (cut bool) {
		defer func() {
			if p := recover(); p != nil {
				if p != http.ErrAbortHandler {
					panic(p)
				}
				cut = true
			}
		}()
		f.adminEngine.ServeHTTP(w, r.WithContext(ctx))
		return false
	}()
	if cut {
		return
	}
	select {
	case err := <-f.errs:
		t.Fatalf("%s %q: internal error: %v", r.Method, r.URL, err)
	default:
	}
	body := plainBody(t, w)
	switch {
	case w.Code == http.StatusInternalServerError:
		t.Fatalf("%s %q: %s", r.Method, r.URL, body)
	case w.Code >= 400:
		var e struct{ Error any }
		if err := json.Unmarshal(body, &e); err != nil || e.Error == nil {
			t.Fatalf("%s %q: %d with %q", r.Method, r.URL, w.Code, body)
		}
	}
	f.models.balanced(t)
}

// plainBody is the body of an answer without its coding: long errors are
// compressed too.
func plainBody(t *testing.T, w *httptest.ResponseRecorder) []byte {
	t.Helper()
	var r io.Reader = w.Body
	var err error
	switch w.Header().Get("Content-Encoding") {
	case codingGzip:
		r, err = gzip.NewReader(r)
	case codingDeflate:
		r, err = zlib.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// FuzzRequest reads bytes as net/http does and answers what it makes of them.
func FuzzRequest(f *testing.F) {
	x := fuzzed(f)
	for i := range x.table {
		r := &x.table[i]
		f.Add(fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", r.method, concrete(r)))
	}
	f.Add(fmt.Appendf(nil, "POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(echoBody), echoBody))
	f.Add(append(fmt.Appendf(nil, "POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nAccept-Encoding: deflate;q=0.5, gzip\r\nContent-Length: %d\r\n\r\n", len(gz(echoBody))), gz(echoBody)...))
	f.Add([]byte("POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Add([]byte("GET http://x/v2/models/%2e%2e HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\nOrigin: http://y\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		for _, slow := range []string{"/events", "/debug/pprof"} {
			if strings.Contains(r.URL.Path, slow) {
				return
			}
		}
		r.RemoteAddr = "127.0.0.1:1"
		x.check(t, r)
	})
}

// FuzzInfer varies what an inference request is made of.
func FuzzInfer(f *testing.F) {
	x := fuzzed(f)
	binary := `{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}},{"name":"ids","shape":[1],"datatype":"INT64","data":[1]},` +
		`{"name":"s","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":5}}],"parameters":{"binary_data_output":true}}`
	f.Add([]byte(echoBody), "", "", "")
	f.Add(append([]byte(binary), append(make([]byte, 12), 1, 0, 0, 0, 'a')...), fmt.Sprint(len(binary)), "", "gzip")
	f.Add(gz(echoBody), "", "gzip", "deflate")
	f.Add(zl(echoBody), "", "deflate", "gzip;q=0, deflate;q=1")
	f.Add([]byte{0, 0, 0, 0}, "0", "", "")
	f.Add([]byte(echoBody), "-1", "gzip, gzip", "*")
	f.Fuzz(func(t *testing.T, body []byte, length, coding, accept string) {
		r := httptest.NewRequest("POST", "http://localhost/v2/models/echo/infer", bytes.NewReader(body))
		for name, v := range map[string]string{headerLength: length, "Content-Encoding": coding, "Accept-Encoding": accept} {
			if v != "" {
				r.Header[name] = []string{v}
			}
		}
		x.check(t, r)
	})
}

// FuzzJSONRoutes sends a body to one of the routes that take JSON.
func FuzzJSONRoutes(f *testing.F) {
	x := fuzzed(f)
	var routes []*route
	for i := range x.table {
		if r := &x.table[i]; r.body != nil && r.bodyType == "" && !strings.HasSuffix(r.path, "/infer") {
			routes = append(routes, r)
		}
	}
	seeds := []string{`{}`, `[]`, `null`, `{"model":"letters","input":["a","b"],"encoding_format":"base64","dimensions":2}`, `{"model":"letters","input":[[1,2],[3]]}`,
		`{"inputs":["a",["b","c"]],"truncate":true,"raw_scores":true}`, `{"query":"a","texts":["b","c"],"return_text":true}`, `{"model":"letters","texts":["a"]}`,
		`{"inputs":"a","add_special_tokens":false}`, `{"ready":true}`, `{"parameters":{"config":"{}","file:1/model.onnx":"AAAA"}}`, `{"version":"1"}`,
		`{"model":"m","scheme":"int8","calibration":{"dataset":"d"},"max_loss":0.01,"promote":true}`}
	for i := range routes {
		for _, s := range seeds {
			f.Add(uint8(i), []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, i uint8, body []byte) {
		r := routes[int(i)%len(routes)]
		req := httptest.NewRequest(r.method, "http://localhost"+strings.Replace(concrete(r), "echo", "letters", 1), io.NopCloser(bytes.NewReader(body)))
		req.Header.Set("Content-Type", "application/json")
		x.check(t, req)
	})
}
