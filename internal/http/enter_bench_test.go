package http

import (
	"testing"

	"github.com/fewbit/fewbit/internal/access"
)

// BenchmarkEnter is what keys and rates cost each request.
func BenchmarkEnter(b *testing.B) {
	f := newFixture(b, nil, func(c *Config) { c.Keys, c.Rate = keyring(b, access.Admin, access.Infer), 1e6 })
	for b.Loop() {
		if err := f.Enter(NeedInfer, &Caller{Key: inferKey, Addr: "127.0.0.1:80"}); err != nil {
			b.Fatal(err)
		}
	}
}
