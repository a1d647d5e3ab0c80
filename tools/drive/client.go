// Package drive is what the demonstration and the examples share: a server in a
// process of its own, a client of its routes, progress for people, and steps that
// a second run does not repeat.
package drive

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
)

// maxAnswer bounds what is read of one answer.
const maxAnswer = 64 << 20

// Client speaks to a server over HTTP.
type Client struct {
	Base string // its URL
	http *http.Client
}

// NewClient returns a client of the server at base.
func NewClient(base string) *Client {
	// Under load many connections are kept, or each request would pay for a new one.
	return &Client{Base: base, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}}
}

// Do sends one request and decodes the answer into out (which may be nil).
// An answer other than 2xx becomes an error with the server's own words.
func (c *Client) Do(ctx context.Context, method, path, contentType string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, body)
	if err != nil {
		return err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		var e struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = strings.TrimSpace(string(b))
		}
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, e.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: answer is not what was expected: %w", method, path, err)
	}
	return nil
}

// SendJSON posts in and decodes the answer into out.
func (c *Client) SendJSON(ctx context.Context, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.Do(ctx, http.MethodPost, path, "application/json", bytes.NewReader(b), out)
}

// Ready reports whether the repository index shows the model as READY.
func (c *Client) Ready(ctx context.Context, model string) bool {
	var index []struct{ Name, State string }
	if c.Do(ctx, http.MethodPost, "/v2/repository/index", "", nil, &index) != nil {
		return false
	}
	for _, m := range index {
		if m.Name == model && m.State == "READY" {
			return true
		}
	}
	return false
}

// PutModel streams files of the folder as a zip, stored without compression
// (weights do not compress), and returns the new version.
func (c *Client) PutModel(ctx context.Context, name, folder string, files []string) (string, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeZip(w, folder, files)) }()
	defer r.Close()
	var out struct {
		Version json.RawMessage `json:"version"`
	}
	if err := c.Do(ctx, http.MethodPut, "/models/"+name, "application/zip", r, &out); err != nil {
		return "", err
	}
	return strings.Trim(string(out.Version), `"`), nil
}

func writeZip(w io.Writer, folder string, files []string) error {
	z := zip.NewWriter(w)
	for _, name := range files {
		f, err := os.Open(filepath.Join(folder, name))
		if err != nil {
			return err
		}
		part, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = io.Copy(part, f)
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return z.Close()
}

// PutDataset uploads a .jsonl file.
func (c *Client) PutDataset(ctx context.Context, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.Do(ctx, http.MethodPut, "/datasets/"+name, "application/jsonl", f, nil)
}

// Submit asks for a quantization and returns the id of its job.
func (c *Client) Submit(ctx context.Context, s jobs.Spec) (string, error) {
	var out struct {
		ID string `json:"id"`
	}
	if err := c.SendJSON(ctx, "/quantize", s, &out); err != nil {
		return "", err
	}
	if out.ID == "" {
		return "", errors.New("POST /quantize answered without an id")
	}
	return out.ID, nil
}

// Follow calls show at each change of the job and returns its final status. It
// listens to the job's events and falls back to asking every second.
func (c *Client) Follow(ctx context.Context, id string, show func(jobs.Status)) (jobs.Status, error) {
	for {
		if s, err := c.events(ctx, id, show); err == nil && s.Status.Final() {
			return s, nil
		}
		var s jobs.Status
		if err := c.Do(ctx, http.MethodGet, "/quantize/"+id, "", nil, &s); err != nil {
			return s, err
		}
		show(s)
		if s.Status.Final() {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("job %s is still at %s (%s): %w", id, s.Phase, s.Status, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// events reads the job's server-sent events until they end and returns the
// last status seen.
func (c *Client) events(ctx context.Context, id string, show func(jobs.Status)) (jobs.Status, error) {
	var last jobs.Status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Base+"/quantize/"+id+"/events", nil)
	if err != nil {
		return last, err
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := c.http.Do(req)
	if err != nil {
		return last, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return last, fmt.Errorf("events: %s", resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue
		}
		var s jobs.Status
		if json.Unmarshal([]byte(strings.TrimSpace(data)), &s) == nil && s.Status != "" {
			last = s
			show(s)
		}
	}
	return last, lines.Err()
}

// Report returns the report of a finished job.
func (c *Client) Report(ctx context.Context, s jobs.Status) (*report.Report, error) {
	var result struct {
		Report json.RawMessage `json:"report"`
	}
	for _, raw := range []json.RawMessage{s.Result, nil} {
		if raw == nil && json.Unmarshal(s.Result, &result) == nil {
			raw = result.Report
		}
		if r, err := report.ReadJSON(bytes.NewReader(raw)); err == nil {
			return r, nil
		}
	}
	r := &report.Report{}
	return r, c.Do(ctx, http.MethodGet, "/quantize/"+s.ID+"/report", "", nil, r)
}

// EngineVersion is the version of ONNX Runtime that a report names.
func EngineVersion(r report.Report) string {
	_, v, _ := strings.Cut(r.Machine.Engine, "ONNX Runtime ")
	return strings.TrimRight(v, ")")
}
