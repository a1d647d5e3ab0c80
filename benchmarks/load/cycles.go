package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
)

const (
	barCycles = 1.05
	// settled are the cycles before the base: pools and arenas have their size by
	// then. measured is how often memory is read after it.
	settled  = 50
	measured = 20
	// ends are the readings that the median before, and after, is of.
	ends = 5
)

const howCycles = `The news classifier (22 MB of INT8 weights, tokenizer, labels) is loaded, asked one text and unloaded over HTTP; resident memory of the server's process, ` +
	`read 2 s after an unload: it is given back within one. Before and after: the medians of the first and the last five readings. Growth: the slope of a line through all of them.`

// reading is the server's resident memory after so many cycles.
type reading struct {
	Cycles   int   `json:"cycles"`
	Resident int64 `json:"resident_bytes"`
}

// cycles loads, asks and unloads a model many times.
func cycles(o options, res *harness.Result, data string) error {
	srv, err := harness.Start(o.serve, data, o.args...)
	if err != nil {
		return err
	}
	defer srv.Stop()
	const dir = ".deps/models/news"
	archive, err := zipOf(dir, "model.onnx", "model.onnx.data", "tokenizer.json", "labels.txt")
	if err != nil {
		return fmt.Errorf("%w; run make deps", err)
	}
	path := filepath.Join(data, "news.zip")
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		return err
	}
	if err := upload(srv, "news", path); err != nil {
		return err
	}
	post := func(route, body string) error {
		_, err := harness.Call(http.DefaultClient, http.MethodPost, srv.Base+route, "application/json", nil, bytesOf(body))
		return err
	}
	var seen []reading
	start := time.Now()
	for i := range settled + o.cycles {
		for _, step := range [][2]string{{"/v2/repository/models/news/load", ""}, {"/v1/classify", `{"model":"news","text":"The striker scored twice"}`}, {"/v2/repository/models/news/unload", ""}} {
			if err := post(step[0], step[1]); err != nil {
				return fmt.Errorf("cycle %d: %w", i, err)
			}
		}
		if done := i + 1 - settled; done >= 0 && done%max(o.cycles/measured, 1) == 0 {
			time.Sleep(2 * time.Second)
			seen = append(seen, reading{done, harness.Resident(srv.PID)})
			harness.Say("%d cycles: %.1f MB", done, float64(seen[len(seen)-1].Resident)/1e6)
		}
	}
	took := time.Since(start)
	base, end := middle(seen[:min(ends, len(seen))]), middle(seen[max(0, len(seen)-ends):])
	ratio := float64(end) / max(float64(base), 1)
	holds := ratio <= barCycles
	res.Add(harness.Row{What: fmt.Sprintf("%d times load, ask and unload, resident memory", o.cycles), Ours: fmt.Sprintf("%.1f MB", float64(end)/1e6), Peer: fmt.Sprintf("at first: %.1f MB", float64(base)/1e6),
		Ratio: &ratio, Bar: fmt.Sprintf("<= %.2fx", barCycles), Holds: &holds,
		Details: map[string]any{"readings": seen, "growth_bytes_per_cycle": slope(seen), "seconds": took.Seconds()}})
	return nil
}

func middle(seen []reading) int64 {
	var r []int64
	for _, x := range seen {
		r = append(r, x.Resident)
	}
	slices.Sort(r)
	return r[len(r)/2]
}

// slope is that of the line with the least squares, in bytes a cycle.
func slope(seen []reading) float64 {
	var x, y, xx, xy float64
	n := float64(len(seen))
	for _, r := range seen {
		a, b := float64(r.Cycles), float64(r.Resident)
		x, y, xx, xy = x+a, y+b, xx+a*a, xy+a*b
	}
	if d := n*xx - x*x; d > 0 {
		return (n*xy - x*y) / d
	}
	return 0
}
