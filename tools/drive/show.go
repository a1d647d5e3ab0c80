package drive

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Between these lines of a page stands what a program printed.
const (
	outputBegin = "<!-- output -->"
	outputEnd   = "<!-- /output -->"
)

// Publish prints text, and where these are named writes the result and shows the
// text in the page.
func Publish(out io.Writer, text, page, result string, write func(path string) error) error {
	fmt.Fprintf(out, "\n%s", text)
	if result != "" {
		if err := write(result); err != nil {
			return err
		}
	}
	if page != "" {
		return Show(page, text)
	}
	return nil
}

// Show puts text between the markers of the page at path.
func Show(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	page, err := Shown(string(old), text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(page), 0o644)
}

// Shown returns the page with text between its markers.
func Shown(page, text string) (string, error) {
	head, rest, ok1 := strings.Cut(page, outputBegin)
	_, tail, ok2 := strings.Cut(rest, outputEnd)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("the page has no markers %s ... %s", outputBegin, outputEnd)
	}
	return head + outputBegin + "\n```text\n" + strings.TrimSpace(text) + "\n```\n" + outputEnd + tail, nil
}

// Counter shows how much of a step is done: a line now and then.
type Counter struct {
	mu          sync.Mutex
	out         io.Writer
	what        string
	done, all   int
	start, last time.Time
}

// NewCounter counts to all.
func NewCounter(out io.Writer, what string, all int) *Counter {
	now := time.Now()
	return &Counter{out: out, what: what, all: all, start: now, last: now}
}

// Add counts one.
func (c *Counter) Add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	now := time.Now()
	if now.Sub(c.last) < lineEvery {
		return
	}
	c.last = now
	left := time.Duration(float64(now.Sub(c.start)) / float64(c.done) * float64(max(c.all-c.done, 0)))
	fmt.Fprintf(c.out, "    %d of %d %s, about %.0f s left\n", c.done, c.all, c.what, left.Seconds())
}
