package quant

import "fmt"

// Unused says of settings that differ from their defaults and change nothing why they do
// not. c has its defaults.
func (c Config) Unused() (why []string) {
	if len(c.Rules) > 0 {
		return nil // some operators may use them
	}
	add := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	method, granularity := c.Details()
	if method == "" && c.Method != Auto && c.Method != External {
		add("method %s changes nothing: scheme %s has no ranges to choose", c.Method, c.Scheme)
	}
	if method == "" && c.Symmetric {
		add("symmetric ranges change nothing: scheme %s has no ranges to choose", c.Scheme)
	}
	half := c.Scheme.HalfWeights()
	if granularity == "" && c.Granularity != PerChannel {
		reason := "4-bit weights have a scale for each block"
		if half {
			reason = "16-bit weights have no scales"
		}
		add("granularity %s changes nothing: %s", c.Granularity, reason)
	}
	if half && c.Weights != AutoWeights {
		add("weights %s changes nothing: 16-bit weights are rounded to nearest", c.Weights)
	}
	return why
}

// Details returns the method and the granularity where the scheme uses them, "" where not.
func (c Config) Details() (method string, granularity Granularity) {
	if c.NeedsCalibration() {
		method = c.Method
	}
	if !c.Scheme.HalfWeights() && c.Scheme != INT4 || len(c.Rules) > 0 {
		granularity = c.Granularity
	}
	return method, granularity
}
