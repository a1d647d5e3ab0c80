package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/jobs"
)

// lineEvery is how often progress prints a line where it cannot redraw one.
const lineEvery = 5 * time.Second

// progress shows a job's status: one redrawn line on a terminal, a line now
// and then elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	start    time.Time
	last     time.Time
	phase    string
}

func newProgress(out *os.File) *progress {
	st, err := out.Stat()
	return &progress{out: out, terminal: err == nil && st.Mode()&os.ModeCharDevice != 0, start: time.Now()}
}

func (p *progress) show(s jobs.Status) {
	eta := ""
	if s.ETASeconds != nil {
		eta = fmt.Sprintf(", about %.0f s left", *s.ETASeconds)
	}
	line := fmt.Sprintf("    %3.0f %% %s (%s, %.0f s%s)", 100*s.Progress, s.Phase, s.Status, time.Since(p.start).Seconds(), eta)
	switch {
	case p.terminal:
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
	case s.Phase != p.phase || s.Status.Final() || time.Since(p.last) > lineEvery:
		fmt.Fprintln(p.out, line)
		p.last, p.phase = time.Now(), s.Phase
	}
}

func (p *progress) done() {
	if p.terminal {
		fmt.Fprintln(p.out)
	}
}

// example is a request that the demonstration sends itself and shows as curl.
type example struct{ path, body string }

// The token ids are "[CLS] the striker scored twice in the final [SEP]" in the
// encoder's vocabulary.
var examples = []example{
	{"/v1/classify", `{"model":"news","text":"The striker scored twice in the final"}`},
	{"/v2/models/news/infer", `{"inputs":[` +
		`{"name":"input_ids","shape":[1,9],"datatype":"INT64","data":[101,1996,11854,3195,3807,1999,1996,2345,102]},` +
		`{"name":"attention_mask","shape":[1,9],"datatype":"INT64","data":[1,1,1,1,1,1,1,1,1]},` +
		`{"name":"token_type_ids","shape":[1,9],"datatype":"INT64","data":[0,0,0,0,0,0,0,0,0]}]}`},
}

// showRequests prints each example as a curl line with the answer it gets now.
func showRequests(ctx context.Context, api *client) error {
	fmt.Println("Try it:")
	for _, e := range examples {
		fmt.Printf("  curl -s %s%s -H 'Content-Type: application/json' -d '%s'\n", api.base, e.path, e.body)
		var answer json.RawMessage
		if err := api.do(ctx, http.MethodPost, e.path, "application/json", strings.NewReader(e.body), &answer); err != nil {
			return err
		}
		fmt.Printf("    -> %s\n", answer)
	}
	fmt.Println()
	return nil
}
