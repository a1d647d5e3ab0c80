package http

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/registry"
)

// Loading and unloading of models, with files and configuration in the request
// (the protocol's repository extension, as Triton's clients send it).

// Limits of a load request.
const (
	// MaxLoadBody bounds a load request with files, in bytes: in JSON they are
	// base64, which is 4/3 of them. Larger models come with PUT /models/{name}.
	MaxLoadBody = 256 << 20
	// MaxLoadFiles bounds the files of one.
	MaxLoadFiles = 256
	// MaxLoadVersion is the largest version that a file may name.
	MaxLoadVersion = registry.MaxVersions
)

// LoadParams are the parameters of a load request.
type LoadParams struct {
	config []byte
	files  map[string]loadFile // by path: VERSION/NAME, or NAME for every version
}

// loadFile is where the contents of a file lie, perhaps as base64 in a JSON string.
type loadFile struct {
	in      io.ReaderAt
	from, n int64
	base64  bool
	escapes bool // the string has some
}

func (f loadFile) reader() io.Reader {
	var r io.Reader = io.NewSectionReader(f.in, f.from, f.n)
	if f.escapes {
		r = &unescaper{r: bufio.NewReader(r)}
	}
	if f.base64 {
		r = base64Reader{base64.NewDecoder(base64.StdEncoding, r)}
	}
	return r
}

// unescaper reads the text of a JSON string whose escapes the scanner has seen.
type unescaper struct {
	r    *bufio.Reader
	left []byte // of a character that did not fit
}

func (u *unescaper) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(u.left) > 0 {
			k := copy(p[n:], u.left)
			n, u.left = n+k, u.left[k:]
			continue
		}
		c, err := u.r.ReadByte()
		if err != nil {
			return n, err
		}
		if c != '\\' {
			p[n] = c
			n++
			continue
		}
		_ = u.r.UnreadByte() // of the read just made
		b, _ := u.r.Peek(maxEscape)
		r, size := escapeAt(b)
		if size == 0 {
			return n, io.ErrUnexpectedEOF
		}
		_, _ = u.r.Discard(size) // they were peeked at
		u.left = utf8.AppendRune(u.left[:0], r)
	}
	return n, nil
}

// base64Reader words the errors of a base64 decoder over memory.
type base64Reader struct{ io.Reader }

func (r base64Reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = badf("a file of the load request is not base64")
	}
	return n, err
}

// filePrefix marks the parameters that are files.
const filePrefix = "file:"

// Config sets the model's configuration, a JSON object.
func (p *LoadParams) Config(b []byte) { p.config = b }

// File adds the file that a parameter "file:..." names; key is the whole name.
func (p *LoadParams) File(key string, data []byte) error {
	return p.add(key, loadFile{in: bytes.NewReader(data), n: int64(len(data))})
}

func (p *LoadParams) add(key string, f loadFile) error {
	path, ok := strings.CutPrefix(key, filePrefix)
	if !ok {
		return badf("unknown parameter %s of load: expected config and file:VERSION/NAME", clip([]byte(key)))
	}
	if len(p.files) >= MaxLoadFiles {
		return badf("more than %d files in one load request", MaxLoadFiles)
	}
	if _, twice := p.files[path]; twice {
		return badf("file %s is given twice", clip([]byte(path)))
	}
	if p.files == nil {
		p.files = map[string]loadFile{}
	}
	p.files[path] = f
	return nil
}

// InlineVersion is one version that a load request brings along.
type InlineVersion struct {
	Number int // asked for
	Files  map[string]io.Reader
}

// InlineLoader is an optional ability of Models: load what the request brings.
type InlineLoader interface {
	// LoadFiles publishes the versions, ascending by number, and serves the last
	// of them. Contents that a version already has are not published again.
	LoadFiles(ctx context.Context, name string, versions []InlineVersion) (served string, err error)
	// LoadVersion makes a version the default and loads it.
	LoadVersion(ctx context.Context, name, version string) error
}

// Load answers a load request and returns the version that is served then.
func (s *Server) Load(ctx context.Context, name string, p *LoadParams) (string, error) {
	if err := checkName("model", name); err != nil {
		return "", err
	}
	version := 0
	if len(p.config) > 0 {
		var err error
		if version, err = checkConfig(name, p.config); err != nil {
			return "", err
		}
	}
	in, able := s.cfg.Models.(InlineLoader)
	switch {
	case !able && (version > 0 || len(p.files) > 0):
		return "", failf(http.StatusNotImplemented, "this server loads only what it has: upload models with PUT /models/{name}")
	case len(p.files) > 0:
		versions, err := p.versions(version)
		if err != nil {
			return "", err
		}
		return in.LoadFiles(ctx, name, versions)
	case version > 0:
		return strconv.Itoa(version), in.LoadVersion(ctx, name, strconv.Itoa(version))
	}
	return s.defaultVersion(name), s.cfg.Models.Load(ctx, name)
}

func (s *Server) defaultVersion(name string) string {
	for _, m := range s.cfg.Models.List() {
		if m.Name == name && m.Default {
			return m.Version
		}
	}
	return ""
}

// versions sorts the files into versions. With only, that is the last of them:
// the one to serve.
func (p *LoadParams) versions(only int) ([]InlineVersion, error) {
	all := map[int]*InlineVersion{}
	shared := []string{}
	for _, path := range slices.Sorted(maps.Keys(p.files)) {
		number, name, inVersion := strings.Cut(path, "/")
		n, err := strconv.Atoi(number)
		switch {
		case !inVersion || err != nil && !strings.Contains(number, "."):
			shared = append(shared, path) // tokenizer.json, 1_Pooling/config.json
			continue
		case err != nil || n < 1 || n > MaxLoadVersion || strconv.Itoa(n) != number:
			return nil, badf("file %s: expected file:VERSION/NAME with a version from 1 to %d", clip([]byte(path)), MaxLoadVersion)
		}
		if all[n] == nil {
			all[n] = &InlineVersion{Number: n, Files: map[string]io.Reader{}}
		}
		all[n].Files[name] = p.files[path].reader()
	}
	if len(all) == 0 {
		return nil, badf("the load request has no file of a version: expected file:1/%s", registry.ModelFile)
	}
	if only > 0 && all[only] == nil {
		return nil, badf("the configuration asks for version %d, of which there is no file", only)
	}
	var out []InlineVersion
	for _, n := range slices.Sorted(maps.Keys(all)) {
		if only > 0 && n > only {
			break
		}
		v := all[n]
		for _, name := range shared {
			if name == "config.pbtxt" {
				return nil, badf("file config.pbtxt: send the configuration as parameter config, in JSON")
			}
			if _, own := v.Files[name]; !own {
				v.Files[name] = p.files[name].reader()
			}
		}
		out = append(out, *v)
	}
	return out, nil
}

// tritonConfig is what of Triton's model configuration decides whether and which
// version can be served. The rest (inputs, outputs, batching, instances) the
// model's file and the scheduler decide.
type tritonConfig struct {
	Name     string `json:"name"`
	Platform string `json:"platform"`
	Backend  string `json:"backend"`
	Policy   *struct {
		Specific *struct {
			Versions []json.Number `json:"versions"`
		} `json:"specific"`
	} `json:"version_policy"`
}

const backend = "onnxruntime"

// checkConfig refuses a configuration for something else than this model in ONNX
// Runtime, and returns the version that it asks for, 0 for none.
func checkConfig(name string, b []byte) (version int, err error) {
	if len(b) > MaxJSONBody {
		return 0, tooLongConfig(len(b))
	}
	sc := &scanner{b: b}
	if sc.ws() != '{' {
		return 0, badf("parameter config: expected a JSON object, got %s", sc.what())
	}
	if err := cmpErr(sc.skip(), sc.end); err != nil { // bounds the depth
		return 0, fmt.Errorf("parameter config: %w", err)
	}
	var c tritonConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return 0, badf("parameter config: not a model configuration in JSON")
	}
	switch {
	case c.Name != "" && c.Name != name:
		return 0, badf("the configuration is for model %s, not %s", clip([]byte(c.Name)), name)
	case c.Platform != "" && c.Platform != platform && c.Platform != "onnx":
		return 0, badf("the configuration asks for platform %s, this server has %s", clip([]byte(c.Platform)), platform)
	case c.Backend != "" && c.Backend != backend:
		return 0, badf("the configuration asks for backend %s, this server has %s", clip([]byte(c.Backend)), backend)
	}
	if c.Policy == nil || c.Policy.Specific == nil {
		return 0, nil
	}
	for _, number := range c.Policy.Specific.Versions { // the newest of them, as requests without a version reach
		n, err := strconv.Atoi(number.String())
		if err != nil || n < 1 || n > MaxLoadVersion {
			return 0, badf("the configuration asks for version %s, versions are whole numbers from 1 to %d", clip([]byte(number)), MaxLoadVersion)
		}
		version = max(version, n)
	}
	return version, nil
}

func tooLongConfig(n int) error {
	return badf("the configuration has %d bytes, at most %d are read", n, MaxJSONBody)
}

// cmpErr returns err, or what next does.
func cmpErr(err error, next func() error) error {
	if err != nil {
		return err
	}
	return next()
}

type loadAnswer struct {
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty" doc:"the version that is served now"`
}

func (s *Server) repositoryLoad(c *gin.Context) error {
	name, err := pathName(c, "model", "model")
	if err != nil {
		return err
	}
	held := int64(0)
	defer func() { s.Free(held) }()
	body, err := s.spool(c, MaxLoadBody, func(n int) error {
		held += int64(n)
		return s.hold(int64(n))
	})
	if err != nil {
		return err
	}
	defer body.close()
	p, err := parseLoad(body)
	if err != nil {
		return err
	}
	body.unmap()
	version, err := s.Load(c.Request.Context(), name, p)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, loadAnswer{name, version})
}

// parseLoad reads the body of a load request. Its files are read where they lie.
func parseLoad(body *spooled) (*LoadParams, error) {
	p := &LoadParams{}
	if len(body.b) == 0 {
		return p, nil
	}
	sc := &scanner{b: body.b, maxCopy: MaxJSONBody, passed: body.passed}
	err := parameters(sc, func(key string) error {
		if key == "config" {
			v, err := sc.str()
			switch {
			case err != nil:
				return err
			case p.config != nil:
				return badf("parameter config is given twice")
			case len(v) > MaxJSONBody:
				return tooLongConfig(len(v))
			}
			p.config = append([]byte{}, v...)
			return nil
		}
		from, to, escapes, err := sc.raw()
		if err != nil {
			return err
		}
		return p.add(key, loadFile{in: body.at(), from: int64(from), n: int64(to - from), base64: true, escapes: escapes})
	})
	return p, err
}

// parameters reads a body {"parameters": {...}}; value reads each value.
func parameters(sc *scanner, value func(key string) error) error {
	err := sc.object(func(key []byte) error {
		if view(key) != "parameters" || sc.null() {
			return sc.skip()
		}
		return sc.object(func(key []byte) error { return value(string(key)) })
	})
	if err != nil {
		return err
	}
	return sc.end()
}

func (s *Server) repositoryUnload(c *gin.Context) error {
	name, err := pathName(c, "model", "model")
	if err != nil {
		return err
	}
	buf := getBuffer()
	defer buf.free()
	if err := s.readBody(c, buf, 0, MaxJSONBody, nil); err != nil {
		return err
	}
	if len(buf.b) > 0 {
		sc := &scanner{b: buf.b}
		// No model depends on another here: unload_dependents changes nothing.
		err := parameters(sc, func(key string) error {
			if err := CheckUnload(key); err != nil {
				return err
			}
			return sc.skip()
		})
		if err != nil {
			return err
		}
	}
	if err := s.cfg.Models.Unload(c.Request.Context(), name); err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, struct{}{})
}

// CheckUnload refuses parameters that are load's; clients send others by
// themselves.
func CheckUnload(key string) error {
	if key == "config" || strings.HasPrefix(key, filePrefix) {
		return badf("parameter %s is load's, unload has none", clip([]byte(key)))
	}
	return nil
}
