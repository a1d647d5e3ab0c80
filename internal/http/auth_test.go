package http

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/sha256"

	"github.com/fewbit/fewbit/internal/access"
)

// Keys of the tests.
const (
	adminKey = "admin-key-of-32-characters-and-more"
	inferKey = "infer-key-of-32-characters-and-more"
)

// keyring has the keys by role: "admin", "infer" or both.
func keyring(t testing.TB, roles ...access.Role) *access.Keyring {
	t.Helper()
	file := ""
	for _, r := range roles {
		file += fmt.Sprintf("%s-1 %s sha256:%x\n", r, r, sha256.Sum256([]byte(map[access.Role]string{access.Admin: adminKey, access.Infer: inferKey}[r])))
	}
	keys, err := access.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return access.Static(keys)
}

// concrete is a route's path with names in the place of its parameters.
func concrete(r *route) string {
	return strings.NewReplacer(":model", "echo", ":id", "job1", ":dataset", "d", ":version", "1", ":file", "console.js").Replace(r.path)
}

// TestAdminRoutes is item 18 of the list of bad input: no spelling of an admin
// route and no wrong way to send a key gets in.
func TestAdminRoutes(t *testing.T) {
	locked := newFixture(t, nil, func(c *Config) { c.Keys = keyring(t, access.Admin) })
	locked.failures = access.NewLimiter(1, 1<<30) // each is to be judged by its key
	for i := range locked.table {
		r := &locked.table[i]
		if !r.admin {
			continue
		}
		path := concrete(r)
		for _, spelling := range []string{path, "/." + path, path + "/", strings.ToUpper(path), "/" + path, strings.Replace(path, "e", "%65", 1),
			strings.Replace(path, "/", "/%2e%2e/v2/../", 1), strings.Replace(path, "/", "//", 1), path + ";x=1", path + "%00", path + "?key=" + adminKey, path + "?access_token=" + adminKey} {
			for _, h := range [][]string{nil, {"X-API-Key", "wrong"}, {"Authorization", "Bearer " + adminKey + "x"}, {"Authorization", "Basic " + adminKey}, {"Cookie", "key=" + adminKey},
				{"Authorization", "Bearer " + strings.ToUpper(adminKey)}, {"Authorization", adminKey}, {"X-API-Key", strings.Repeat("x", 2000)}, {"X-Forwarded-For", "127.0.0.1"}} {
				a := locked.call(t, r.method, spelling, nil, h...)
				if a.status != 401 && a.status != 404 && a.status != 405 && a.status != 400 {
					t.Errorf("%s %s %v: %d", r.method, spelling, h, a.status)
				}
				if a.status == 401 && !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") {
					t.Errorf("%s: no WWW-Authenticate", spelling)
				}
				wantError(t, a, a.status)
			}
		}
	}
	for _, h := range [][]string{{"X-API-Key", adminKey}, {"Authorization", "Bearer " + adminKey}, {"authorization", "bearer  " + adminKey}, {"api-key", adminKey}} {
		if a := locked.call(t, "GET", "/quantize", nil, h...); a.status != 200 {
			t.Errorf("%v: %d", h, a.status)
		}
	}
	locked.fine(t) // inference needs no key: the file has none for it
	// Clients that send some key when none is needed are served.
	if a := locked.call(t, "POST", "/v2/models/echo/infer", echoBody, "Authorization", "Bearer none"); a.status != 200 {
		t.Errorf("a needless key: %d", a.status)
	}
}

// Without keys admin routes are for this machine, and not for web pages.
func TestAdminWithoutKeys(t *testing.T) {
	open := newFixture(t, nil, nil)
	for _, c := range []struct {
		headers []string
		status  int
	}{
		{nil, 200}, {[]string{"Host", "localhost:1"}, 200}, {[]string{"Host", "[::1]:80"}, 200}, {[]string{"Host", "127.0.0.2"}, 200},
		{[]string{"Host", "evil.example"}, 403}, {[]string{"Host", "127.0.0.1.evil.example"}, 403}, {[]string{"Host", "localhost.evil.example:80"}, 403},
		{[]string{"Origin", "http://evil.example"}, 403}, {[]string{"Origin", "null"}, 403}, {[]string{"Origin", open.url}, 200},
		{[]string{"Sec-Fetch-Site", "cross-site"}, 403}, {[]string{"Sec-Fetch-Site", "same-origin"}, 200}, {[]string{"Sec-Fetch-Site", "same-site"}, 403},
	} {
		if a := open.call(t, "GET", "/quantize", nil, c.headers...); a.status != c.status {
			t.Errorf("%v: %d, want %d: %s", c.headers, a.status, c.status, a.body)
		}
	}
	wide := newFixture(t, nil, func(c *Config) { c.Listen = "0.0.0.0:0" })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(wide.url, "http://"))
	wide.url = "http://127.0.0.1:" + port
	if text := wantError(t, wide.call(t, "GET", "/quantize", nil), 403); !strings.Contains(text, "--keys") {
		t.Errorf("%q does not say how to configure keys", text)
	}
	wide.fine(t)
}

// TestRoles: with a key for inference every route needs one but those that say
// that the server is there.
func TestRoles(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.Keys = keyring(t, access.Admin, access.Infer) })
	f.failures = access.NewLimiter(1, 1<<30)
	open := 0
	for i := range f.table {
		r := &f.table[i]
		if r.private {
			continue
		}
		if r.open {
			open++
		}
		if strings.HasSuffix(r.path, "/events") && r.admin {
			continue // a stream that does not end
		}
		for key, want := range map[string]bool{"": r.open, "wrong": r.open, inferKey: !r.admin, adminKey: true} {
			a := f.call(t, r.method, concrete(r), nil, "X-API-Key", key)
			got := a.status != 401 && a.status != 403
			if got != want {
				t.Errorf("%s %s with %q: %d", r.method, r.path, key, a.status)
			}
			if key == inferKey && r.admin {
				if text := wantError(t, a, 403); !strings.Contains(text, "infer-1 has the role infer") {
					t.Errorf("%q does not name the key", text)
				}
			}
		}
	}
	if open < 5 || open > 8 {
		t.Errorf("%d routes need no key", open)
	}
	// The errors of other protocols' routes keep their forms.
	for path, form := range map[string]string{"/v1/embeddings": `"message":`, "/embed": `"error_type":"Unauthorized"`} {
		if a := f.call(t, "POST", path, "{}"); a.status != 401 || !strings.Contains(string(a.body), form) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	only := newFixture(t, nil, func(c *Config) { c.Keys = keyring(t, access.Infer) })
	wantError(t, only.call(t, "GET", "/quantize", nil), 401)
	wantError(t, only.call(t, "GET", "/quantize", nil, "X-API-Key", inferKey), 403)
}

// TestFailedAttempts: unknown keys from one address are answered 429 after a
// while; those who have a key go on.
func TestFailedAttempts(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.Keys = keyring(t, access.Admin, access.Infer) })
	statuses := map[int]int{}
	for i := range access.FailedBurst + 10 {
		a := f.call(t, "GET", "/v2/models", nil, "X-API-Key", fmt.Sprintf("guess-%d", i))
		statuses[a.status]++
		if a.status == 429 && a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	if statuses[401] < access.FailedBurst || statuses[429] == 0 || len(statuses) != 2 {
		t.Errorf("statuses %v", statuses)
	}
	if a := f.call(t, "GET", "/v2/models", nil, "X-API-Key", inferKey); a.status != 200 {
		t.Errorf("a right key from the same address: %d", a.status)
	}
	if m := f.call(t, "GET", "/metrics", nil, "X-API-Key", adminKey); !strings.Contains(string(m.body), `fewbit_refused_total{reason="attempts"}`) {
		t.Error("the refusals are not counted")
	}
}

func TestRateLimit(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) {
		c.Keys, c.Rate, c.RateBurst = keyring(t, access.Admin), 0.01, 3
	})
	get := func(headers ...string) answer { return f.call(t, "GET", "/v2/models", nil, headers...) }
	for i := range 3 {
		if a := get(); a.status != 200 {
			t.Fatalf("request %d of a burst of 3: %d", i, a.status)
		}
	}
	a := get()
	if text := wantError(t, a, 429); !strings.Contains(text, "0.01 requests a second") || a.header.Get("Retry-After") != "60" {
		t.Errorf("%q, Retry-After %q", text, a.header.Get("Retry-After"))
	}
	if a := get("X-API-Key", "not a key"); a.status != 429 {
		t.Errorf("an unknown key got a budget of its own: %d", a.status)
	}
	if a := get("X-API-Key", adminKey); a.status != 200 {
		t.Errorf("a key shares the budget of its address: %d", a.status)
	}
	for range 10 { // probes are not counted
		if a := f.call(t, "GET", "/v2/health/live", nil); a.status != 200 {
			t.Fatalf("a probe: %d", a.status)
		}
	}
}

// TestAdminListener: with a listener of their own, administrators are served
// there only, and profiles nowhere else.
func TestAdminListener(t *testing.T) {
	single := newFixture(t, nil, nil)
	wantError(t, single.call(t, "GET", "/debug/pprof/heap", nil), 404)
	f := newFixture(t, nil, func(c *Config) { c.SplitAdmin = true })
	at := *f
	at.url = f.admin
	for i := range f.table {
		r := &f.table[i]
		if strings.HasSuffix(r.path, "/events") || strings.Contains(r.path, "pprof/profile") || strings.Contains(r.path, "pprof/trace") {
			continue // take their time
		}
		a := f.call(t, r.method, concrete(r), nil)
		here := !r.admin && (r.tag != tagOperate || r.path == openAPIRoute)
		if text := string(a.body); here == (strings.Contains(text, "no such route") || a.status == 405) {
			t.Errorf("%s %s on the public listener: %d %.100s", r.method, r.path, a.status, text)
		}
		if a := at.call(t, r.method, concrete(r), nil); strings.Contains(string(a.body), "no such route") || a.status == 405 || a.status == 401 || a.status == 403 {
			t.Errorf("%s %s on the administrators' listener: %d %.100s", r.method, r.path, a.status, a.body)
		}
	}
	var docs [2]struct{ Paths map[string]any }
	for i, url := range []*fixture{f, &at} {
		if err := json.Unmarshal(url.call(t, "GET", openAPIRoute, nil).body, &docs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if docs[0].Paths["/quantize"] != nil || docs[0].Paths["/metrics"] != nil || docs[1].Paths["/quantize"] == nil || docs[1].Paths["/debug/pprof/heap"] == nil {
		t.Error("openapi.json lists what the listener does not serve")
	}
	if a := at.call(t, "GET", "/debug/pprof/goroutine?debug=1", nil); !strings.HasPrefix(string(a.body), "goroutine profile") {
		t.Errorf("a profile: %d %.100s", a.status, a.body)
	}
	f.fine(t)
	at.fine(t)
	wantError(t, at.call(t, "GET", "/quantize", nil, "Host", "evil.example"), 403)
}

func TestCORS(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) {
		c.CORSOrigins, c.Keys = []string{"https://app.example.org"}, keyring(t, access.Admin, access.Infer)
	})
	const infer = "/v2/models/echo/infer"
	ask := func(path, origin, method string) string {
		a := f.call(t, "OPTIONS", path, nil, "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", "authorization,content-type,inference-header-content-length")
		return a.header.Get("Access-Control-Allow-Origin")
	}
	for _, c := range []struct{ path, origin, method, want string }{
		{infer, "https://app.example.org", "POST", "https://app.example.org"}, {"/v1/embeddings", "https://app.example.org", "POST", "https://app.example.org"},
		{infer, "https://evil.example", "POST", ""}, {infer, "http://app.example.org", "POST", ""}, {infer, "https://app.example.org", "DELETE", ""}, {infer, "null", "POST", ""},
		{"/quantize", "https://app.example.org", "POST", ""}, {"/models/m", "https://app.example.org", "PUT", ""}, {"/v2/repository/models/echo/load", "https://app.example.org", "POST", ""},
	} {
		if got := ask(c.path, c.origin, c.method); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	a := f.call(t, "POST", infer, echoBody, "Origin", "https://app.example.org", "Authorization", "Bearer "+inferKey)
	if a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "https://app.example.org" || a.header.Get("Vary") == "" {
		t.Errorf("%d %v", a.status, a.header)
	}
	// A cache keeps the answers to other pages apart, also of what is compressed.
	a = f.call(t, "GET", "/openapi.json", nil, "Origin", "https://app.example.org", "Accept-Encoding", "gzip")
	if vary := strings.Join(a.header.Values("Vary"), ","); a.header.Get("Content-Encoding") != "gzip" || !strings.Contains(vary, "Origin") || !strings.Contains(vary, "Accept-Encoding") {
		t.Errorf("a compressed answer: %d %v", a.status, a.header)
	}
	// A page can read why it was refused.
	if a := f.call(t, "POST", infer, echoBody, "Origin", "https://app.example.org"); a.status != 401 || a.header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("%d %v", a.status, a.header)
	}
	if a := f.call(t, "GET", "/quantize", nil, "Origin", "https://app.example.org", "Authorization", "Bearer "+adminKey); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a page may read admin routes")
	}
	off := newFixture(t, nil, nil)
	a = off.call(t, "OPTIONS", infer, nil, "Origin", "https://app.example.org", "Access-Control-Request-Method", "POST")
	if a.status != 405 || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without --cors-origin: %d %v", a.status, a.header)
	}
	for s, ok := range map[string]bool{"*": true, "https://a.example": true, "http://localhost:3000": true, "a.example": false, "https://": false, "https://a/b": false, "https://*.a": false, "ftp://a": false, "": false} {
		if err := CheckOrigin(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestAudit: each call of an administrator is one line, answered or refused, and
// holds no key.
func TestAudit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	audit, err := access.OpenAudit(file)
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, nil, func(c *Config) { c.Keys, c.Audit = keyring(t, access.Admin, access.Infer), audit })
	begin := time.Now()
	f.call(t, "PUT", "/datasets/d", "x", "X-API-Key", adminKey)
	f.call(t, "GET", "/quantize?token=secret-of-mine", nil, "X-API-Key", adminKey)
	f.call(t, "DELETE", "/datasets/none", nil, "X-API-Key", adminKey)
	f.call(t, "PUT", "/models/m", "x", "X-API-Key", inferKey)
	f.call(t, "PUT", "/models/"+strings.Repeat("m", 3000), "x", "X-API-Key", "wrong-key-wrong-key")
	f.call(t, "POST", "/v2/models/echo/infer", echoBody, "X-API-Key", inferKey) // nobody's business
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	if err := audit.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{adminKey, inferKey, "wrong-key", "secret-of-mine"} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("the log holds %s", secret)
		}
	}
	var got []string
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		var e access.Event
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		if e.Time.Before(begin.Add(-time.Second)) || !strings.HasPrefix(e.From, "127.0.0.1:") || e.TookMS < 0 || (e.Error != "") != (e.Status >= 400) || len(e.Path) > 600 {
			t.Errorf("%+v", e)
		}
		got = append(got, fmt.Sprintf("%s %s %.20s %d", e.Who, e.Method, e.Path, e.Status))
	}
	want := []string{"admin-1 PUT /datasets/d 201", "admin-1 GET /quantize 200", "admin-1 DELETE /datasets/none 404", "infer-1 PUT /models/m 403", " PUT /models/mmmmmmmmmmmm 401"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	var log bytes.Buffer
	f = newFixture(t, nil, func(c *Config) { c.Audit = access.LogAudit(slog.New(slog.NewTextHandler(&log, nil))) })
	f.call(t, "GET", "/quantize", nil)
	f.call(t, "PUT", "/datasets/d", "x")
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "path=/datasets/d status=201") {
		t.Errorf("the log has %s", s)
	}
}
