package data

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/fewbit/fewbit/internal/task"
)

// Limits of a .jsonl file.
const (
	maxLineBytes = 4 << 20 // one line
	maxLines     = 1 << 24 // lines with a sample
	maxClassName = 4 << 10 // bytes of a label given by name
)

// texts is the source of .jsonl files. Opening reads the whole file once, so
// that a bad line is reported before any work is done; it keeps 24 bytes a
// line.
type texts struct {
	file  file
	name  string
	enc   *task.TextEncoder
	lines []textLine // empty when the file is only checked
	check bool
	n     int // lines with a sample
	// hasLabels: every line has one.
	hasLabels bool
	names     []string
	buf       []byte
}

// textLine says where a sample stands, and its class (-1: none).
type textLine struct {
	off   int64
	len   int32
	line  int32
	class int32
}

var _ source = (*texts)(nil)

// textJSON is one line. Unknown fields are ignored.
type textJSON struct {
	Text  *string         `json:"text"`
	Pair  *string         `json:"text_pair"`
	Label json.RawMessage `json:"label"`
}

func openJSONL(f file, size int64, name string, o Options) (source, error) {
	enc, err := task.NewTextEncoder(o.Spec, o.ModelDir, o.MaxTokens)
	if errors.Is(err, task.ErrNotText) {
		return nil, fmt.Errorf("%s: %w: it holds texts, but %w", name, ErrMismatch, err)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t := &texts{file: f, name: name, enc: enc}
	if t.names, err = modelLabels(o); err != nil {
		return nil, err
	}
	if err := t.index(context.Background(), io.NewSectionReader(f, 0, size)); err != nil {
		return nil, err
	}
	return t, nil
}

// fail words an error about a line.
func (t *texts) fail(line int, sentinel error, format string, args ...any) error {
	return fmt.Errorf("%w: %s line %d: %s", sentinel, t.name, line, fmt.Sprintf(format, args...))
}

// index finds and checks every line.
func (t *texts) index(ctx context.Context, r io.Reader) error {
	br := bufio.NewReaderSize(r, 1<<16)
	classes := labelIndex{fixed: t.names != nil, byName: map[string]int32{}}
	for i, n := range t.names {
		classes.byName[n] = int32(i)
	}
	var off int64
	bare := 0 // the first line without a label
	for line := 1; ; line++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, n, err := readLine(br, t.buf[:0])
		t.buf = b[:0]
		if errors.Is(err, ErrTooLarge) {
			return t.fail(line, ErrTooLarge, "more than %d bytes", maxLineBytes)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return t.fail(line, ErrFormat, "cannot be read")
		}
		if line == 1 {
			b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
		}
		if len(bytes.TrimSpace(b)) > 0 {
			if t.n == maxLines {
				return t.fail(line, ErrTooLarge, "more than %d samples", maxLines)
			}
			rec, perr := t.parse(b, line)
			if perr != nil {
				return perr
			}
			class, perr := classes.of(rec.Label)
			if perr != nil {
				return t.fail(line, ErrLabel, "%v", perr)
			}
			if class < 0 && bare == 0 {
				bare = line
			}
			if t.n++; !t.check {
				t.lines = append(t.lines, textLine{off: off, len: int32(n), line: int32(line), class: class})
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
	}
	if t.n == 0 {
		return fmt.Errorf("%w: %s has no lines", ErrEmpty, t.name)
	}
	t.lines = slices.Clip(t.lines)
	if classes.labelled > 0 && bare > 0 {
		return t.fail(bare, ErrLabel, `it has no "label", other lines have one; label all lines or none`)
	}
	t.hasLabels = classes.labelled > 0
	if classes.byText && !classes.fixed {
		t.nameClasses(&classes)
	}
	return nil
}

// nameClasses numbers the names met in the file in sorted order, so that the
// numbers do not depend on the order of the lines.
func (t *texts) nameClasses(c *labelIndex) {
	names := make([]string, 0, len(c.byName))
	for n := range c.byName {
		names = append(names, n)
	}
	sort.Strings(names)
	number := make([]int32, len(names))
	for i, n := range names {
		number[c.byName[n]] = int32(i)
	}
	for i := range t.lines {
		t.lines[i].class = number[t.lines[i].class]
	}
	t.names = names
}

// labelIndex turns labels into class numbers.
type labelIndex struct {
	fixed            bool // byName is labels.txt and must not grow
	byName           map[string]int32
	labelled         int
	bytes            int // of all names
	byText, byNumber bool
}

func (c *labelIndex) of(raw json.RawMessage) (int32, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return -1, nil
	}
	c.labelled++
	var name string
	if raw[0] == '"' && json.Unmarshal(raw, &name) == nil {
		c.byText = true
		if c.byNumber {
			return 0, errors.New("a label by name, where lines before have numbers; use one of the two")
		}
		if id, ok := c.byName[name]; ok {
			return id, nil
		}
		if c.fixed {
			return 0, fmt.Errorf("label %.40q is not in the model's %s", name, task.LabelsFile)
		}
		if c.bytes += len(name); name == "" || len(name) > maxClassName || len(c.byName) >= maxClassNames || c.bytes > maxClassBytes {
			return 0, fmt.Errorf("label %.40q is empty or too long, or there are more than %d classes or %d bytes of their names", name, maxClassNames, maxClassBytes)
		}
		c.byName[name] = int32(len(c.byName))
		return c.byName[name], nil
	}
	var v int64
	if json.Unmarshal(raw, &v) != nil {
		return 0, fmt.Errorf("label %.40s is neither a whole number nor a string", raw)
	}
	c.byNumber = true
	if c.byText {
		return 0, errors.New("a label by number, where lines before have names; use one of the two")
	}
	hi := int64(maxClass)
	if c.fixed {
		hi = int64(len(c.byName)) - 1
	}
	if v < 0 || v > hi {
		return 0, fmt.Errorf("label %d is outside 0 to %d", v, hi)
	}
	return int32(v), nil
}

// Limits of the classes that a data set may name.
const (
	maxClassNames = 1 << 20
	maxClassBytes = 16 << 20
)

// readLine appends the next line to buf, without its end, and returns how many
// bytes it took from r. io.EOF comes with the last line.
func readLine(r *bufio.Reader, buf []byte) ([]byte, int, error) {
	n := 0
	for {
		part, err := r.ReadSlice('\n')
		n += len(part)
		if n > maxLineBytes {
			return buf, n, ErrTooLarge
		}
		buf = append(buf, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return bytes.TrimRight(buf, "\r\n"), n, err
	}
}

func (t *texts) parse(b []byte, line int) (*textJSON, error) {
	var rec textJSON
	if err := json.Unmarshal(b, &rec); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return nil, t.fail(line, ErrFormat, "%q is a %s, expected a string", kind.Field, kind.Value)
		}
		return nil, t.fail(line, ErrFormat, "not a JSON object (%v)", err)
	}
	if rec.Text == nil {
		return nil, t.fail(line, ErrFormat, `no "text"; expected {"text": "...", "label": ...}`)
	}
	return &rec, nil
}

func (t *texts) size() int            { return t.n }
func (t *texts) kind() string         { return kindJSONL }
func (t *texts) labelNames() []string { return t.names }
func (t *texts) labelled() bool       { return t.hasLabels }
func (t *texts) rewind() error        { return nil }
func (t *texts) close() error         { return t.file.Close() }

func (t *texts) read(_ context.Context, i int) (Sample, error) {
	l := t.lines[i]
	t.buf = slices.Grow(t.buf[:0], int(l.len))[:l.len]
	if _, err := t.file.ReadAt(t.buf, l.off); err != nil {
		return Sample{}, t.fail(int(l.line), ErrFormat, "cannot be read any more; the file was changed")
	}
	rec, err := t.parse(bytes.TrimPrefix(t.buf, []byte("\xef\xbb\xbf")), int(l.line))
	if err != nil {
		return Sample{}, err
	}
	text := task.Text{Text: *rec.Text}
	if rec.Pair != nil {
		text.Pair, text.HasPair = *rec.Pair, true
	}
	feeds, tokens, err := t.enc.Encode(text)
	if err != nil {
		return Sample{}, t.fail(int(l.line), ErrMismatch, "%v", err)
	}
	s := Sample{Feeds: feeds, ID: fmt.Sprintf("line %d", l.line), Tokens: tokens[0]}
	if l.class >= 0 {
		s.Label, s.HasLabel = int(l.class), true
	}
	return s, nil
}
