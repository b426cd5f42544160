package filters

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ParseError says where a filter's text is wrong.
type ParseError struct {
	Input  string // the whole text
	Column int    // in characters, from 1; one past the end if something is missing there
	Got    string // what stands there
	Want   string // what could stand there
}

// Error names the column, what was got and what is wanted.
func (e *ParseError) Error() string {
	return fmt.Sprintf("filters: column %d of %s: got %s, want %s", e.Column, short(e.Input), e.Got, e.Want)
}

// Parse returns the filter that text says, in any spelling; the grammar is in docs/filters.md. The empty text is
// the zero filter. The error is a [*ParseError], and the filter then a broken one, which matches nothing. Text may
// have 64 KiB, 32 levels of any, not and prefer, and 4096 conditions.
func Parse(text string) (Filter, error) {
	if n := find(text); n != nil && n.err == nil {
		return Filter{n}, nil
	}
	n, err := parse(text)
	if err != nil {
		return broken(err), err
	}
	return intern(n), nil
}

// MustParse is [Parse] of a text that the programmer wrote: it panics on an error.
func MustParse(text string) Filter {
	f, err := Parse(text)
	if err != nil {
		panic(err)
	}
	return f
}

func parse(text string) (n *node, err error) {
	p := &parser{text: text}
	if len(text) > maxLength {
		return nil, p.fail(maxLength, "a text of "+strconv.Itoa(len(text))+" bytes", strconv.Itoa(maxLength)+" or fewer")
	}
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if r == utf8.RuneError && size == 1 {
			return nil, p.fail(i, fmt.Sprintf("byte %#02x", text[i]), "UTF-8")
		}
		i += size
	}
	if p.space(); p.pos == len(text) {
		return nil, nil
	}
	if n, err = p.all(); err != nil {
		return nil, err
	}
	if p.pos < len(text) {
		return nil, p.unexpected("a comma or the end")
	}
	return n, nil
}

// parser is a recursive descent over text. Every method leaves pos behind the white space after what it read.
type parser struct {
	text  string
	pos   int // in bytes
	depth int
}

// fail returns the error at a byte position.
func (p *parser) fail(pos int, got, want string) error {
	return &ParseError{Input: p.text, Column: utf8.RuneCountInString(p.text[:pos]) + 1, Got: got, Want: want}
}

// unexpected returns the error for what stands at pos.
func (p *parser) unexpected(want string) error { return p.fail(p.pos, p.token(), want) }

// token describes what stands at pos.
func (p *parser) token() string {
	rest := p.text[p.pos:]
	if rest == "" {
		return "the end"
	}
	if w := word(rest); w != "" {
		return short(w)
	}
	_, size := utf8.DecodeRuneInString(rest)
	return strconv.Quote(rest[:size])
}

// at turns the error of a constructor into one at a position; an error that has its position stays as it is.
func (p *parser) at(pos int, err error) error {
	if e, ok := errors.AsType[*argError](err); ok {
		return p.fail(pos, e.field+" "+e.got, e.want)
	}
	return err
}

func (p *parser) space() {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.pos]) >= 0 {
		p.pos++
	}
}

// accept reads the symbol s if it stands at pos.
func (p *parser) accept(s string) bool {
	if !strings.HasPrefix(p.text[p.pos:], s) {
		return false
	}
	p.pos += len(s)
	p.space()
	return true
}

// word returns what s starts with of the characters of keys, names and unquoted values.
func word(s string) string {
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	return s[:i]
}

// word reads a word, or nothing.
func (p *parser) word() string {
	w := word(p.text[p.pos:])
	p.pos += len(w)
	p.space()
	return w
}

// all reads conditions with commas between them.
func (p *parser) all() (*node, error) {
	start := p.pos
	var parts []*node
	for more := true; more; more = p.accept(",") {
		n, err := p.term()
		if err != nil {
			return nil, err
		}
		parts = append(parts, n)
	}
	n, err := newAll(parts)
	if err != nil {
		return nil, p.at(start, err)
	}
	return n, nil
}

// term reads one condition.
func (p *parser) term() (n *node, err error) {
	const want = "a condition: key, !key, key=value, key in (…), " +
		"any(…), not(…), prefer(…), serves(…), id(…) or func(…)"
	start := p.pos
	if p.accept("!") {
		return p.absent()
	}
	name := p.word()
	if name == "" {
		return nil, p.unexpected(want)
	}
	if p.accept("(") {
		n, err = p.call(start, name)
	} else if err = checkKey(name); err == nil {
		n, err = p.comparison(name)
	}
	if err == nil {
		return n, nil
	}
	return nil, p.at(start, err)
}

// absent reads the key after an exclamation mark.
func (p *parser) absent() (*node, error) {
	start := p.pos
	key := p.word()
	if key == "" {
		return nil, p.unexpected("a key")
	}
	if p.pos < len(p.text) && p.text[p.pos] == '(' {
		return nil, p.unexpected("a comma or the end (the opposite of a call is not(" + key + "(…)))")
	}
	n, err := newHas(key, true)
	if err != nil {
		return nil, p.at(start, err)
	}
	return n, nil
}

// comparison reads what follows a key.
func (p *parser) comparison(key string) (*node, error) {
	at := p.pos
	switch {
	case p.accept("=="), p.accept("="):
		return p.equal(key, false)
	case p.accept("!="):
		return p.equal(key, true)
	case p.accept("<="):
		return p.order(at, key, lessEqual)
	case p.accept("<"):
		return p.order(at, key, less)
	case p.accept(">="):
		return p.order(at, key, greaterEqual)
	case p.accept(">"):
		return p.order(at, key, greater)
	}
	switch w := word(p.text[p.pos:]); w {
	case "":
		return newHas(key, false)
	case "in", "notin":
		p.word()
		if !p.accept("(") {
			return nil, p.unexpected(`"("`)
		}
		vs, err := p.values()
		if err != nil {
			return nil, err
		}
		return newIn(key, vs, w == "notin")
	}
	return nil, p.unexpected("an operator: = == != in notin, or for version < <= > >=")
}

// equal reads the value of an equality.
func (p *parser) equal(key string, neg bool) (*node, error) {
	at := p.pos
	v, err := p.value()
	if err != nil {
		return nil, err
	}
	n, err := newIn(key, []string{v}, neg)
	if err != nil {
		return nil, p.at(at, err)
	}
	return n, nil
}

// order reads the version that the version is compared with.
func (p *parser) order(at int, key string, c cmp) (*node, error) {
	if key != "version" {
		got := strconv.Quote(c.String()) + " after the key " + short(key)
		return nil, p.fail(at, got, "= != in or notin: only version has an order")
	}
	at = p.pos
	v, err := p.value()
	if err != nil {
		return nil, err
	}
	n, err := newOrder(c, v)
	if err != nil {
		return nil, p.at(at, err)
	}
	return n, nil
}

// value reads a value, quoted or not.
func (p *parser) value() (string, error) {
	start := p.pos
	if !strings.HasPrefix(p.text[p.pos:], `"`) {
		if v := p.word(); v != "" {
			return v, nil
		}
		return "", p.unexpected(`a value (in "double quotes" if it has other characters than A-Z a-z 0-9 . _ / -)`)
	}
	q, err := strconv.QuotedPrefix(p.text[p.pos:])
	if err != nil {
		return "", p.fail(start, "a quoted value that does not end or has a bad escape", "a string as in Go")
	}
	v, err := strconv.Unquote(q)
	if err != nil || !utf8.ValidString(v) {
		return "", p.fail(start, short(q), "a string as in Go, of UTF-8")
	}
	p.pos += len(q)
	p.space()
	return v, nil
}

// values reads one value or more, and the closing parenthesis.
func (p *parser) values() ([]string, error) {
	var vs []string
	for {
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
		if p.accept(")") {
			return vs, nil
		}
		if !p.accept(",") {
			return nil, p.unexpected(`"," or ")"`)
		}
	}
}
