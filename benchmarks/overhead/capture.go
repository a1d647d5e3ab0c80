package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
)

const (
	// barCapture is the share of the throughput that must be left.
	barCapture = 0.99
	// captureClients ask at a time: enough that the server is never idle.
	captureClients = 4
)

// captureKey writes a new key for captures and returns its path.
func captureKey(dir string) (string, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "capture.key")
	return path, os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600)
}

// captureCost compares the throughput with a capture that runs to that without,
// in turn, at its default settings and on the smallest model, of which it is the
// largest share.
func captureCost(ctx context.Context, res *harness.Result, base string, ask func(*http.Client) func(context.Context) error) error {
	const each = 500 * time.Millisecond
	pairs := 16
	if harness.Full() {
		pairs = 80
	}
	set := func(method, path string) error {
		_, err := harness.Call(httpClient, method, base+"/models/"+modelName+path, "application/json", nil, strings.NewReader(""))
		return err
	}
	rate := func() (float64, error) {
		var n atomic.Int64
		var failed atomic.Pointer[error]
		var wg sync.WaitGroup
		began := time.Now()
		for range captureClients {
			f := ask(&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}})
			wg.Go(func() {
				for time.Since(began) < each {
					if err := f(ctx); err != nil {
						failed.Store(&err)
						return
					}
					n.Add(1)
				}
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return 0, *err
		}
		return float64(n.Load()) / time.Since(began).Seconds(), nil
	}
	if _, err := rate(); err != nil { // warm
		return err
	}
	var ratios []float64
	sumOn, sumOff := 0.0, 0.0
	for i := range pairs {
		var on, off float64
		for k := range 2 {
			var err error
			if (i+k)%2 == 0 { // each goes first as often as the other
				if err = set(http.MethodPut, "/capture"); err == nil {
					if on, err = rate(); err == nil {
						err = set(http.MethodDelete, "/capture")
					}
				}
			} else {
				off, err = rate()
			}
			if err != nil {
				return err
			}
		}
		ratios, sumOn, sumOff = append(ratios, on/off), sumOn+on, sumOff+off
	}
	// The ratios are multiplied, not added: a disturbed turn counts as much on
	// either side.
	logs, ss := 0.0, 0.0
	for _, r := range ratios {
		logs += math.Log(r) / float64(len(ratios))
	}
	for _, r := range ratios {
		ss += (math.Log(r) - logs) * (math.Log(r) - logs)
	}
	half := 1.96 * math.Sqrt(ss/float64(len(ratios)-1)/float64(len(ratios)))
	mean, lo, hi := math.Exp(logs), math.Exp(logs-half), math.Exp(logs+half)
	holds := mean >= barCapture
	res.Add(harness.Row{What: "throughput while inputs are captured, the small model, binary tensors", Ours: fmt.Sprintf("%.0f/s, %.1f %% [%.1f, %.1f] of it", sumOn/float64(pairs), 100*mean, 100*lo, 100*hi),
		Peer: fmt.Sprintf("without: %.0f/s (n = %d pairs)", sumOff/float64(pairs), pairs), Ratio: &mean, Bar: fmt.Sprintf(">= %.2fx", barCapture), Holds: &holds,
		Details: map[string]any{"pairs": pairs, "seconds_each": each.Seconds(), "clients": captureClients, "ratios": ratios}})
	return nil
}
