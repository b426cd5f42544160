package filters

import "strconv"

// call reads the arguments of name( and the closing parenthesis.
func (p *parser) call(start int, name string) (*node, error) {
	switch name {
	case "any":
		return p.filters(start, newAny, true)
	case "prefer":
		return p.filters(start, newPrefer, true)
	case "not":
		return p.filters(start, func(ns []*node) (*node, error) { return newNot(ns[0]) }, false)
	case "id":
		vs, err := p.values()
		if err != nil {
			return nil, err
		}
		return newIn("id", vs, false)
	case "serves":
		return p.one(newServes)
	case "func":
		return p.one(newFunc)
	}
	return nil, p.fail(start, short(name)+" before a parenthesis", "any, not, prefer, serves, id or func")
}

// one reads a single value and the closing parenthesis.
func (p *parser) one(make func(string) (*node, error)) (*node, error) {
	at := p.pos
	v, err := p.value()
	if err != nil {
		return nil, err
	}
	if !p.accept(")") {
		return nil, p.unexpected(`")"`)
	}
	n, err := make(v)
	if err != nil {
		return nil, p.at(at, err)
	}
	return n, nil
}

// filters reads filters, several with semicolons between them if that is allowed, and the closing parenthesis.
func (p *parser) filters(start int, combine func([]*node) (*node, error), several bool) (*node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail(start, "nesting "+strconv.Itoa(p.depth), strconv.Itoa(maxDepth)+" or less")
	}
	defer func() { p.depth-- }()
	var ns []*node
	for {
		at := p.pos
		n, err := p.all()
		if err != nil {
			return nil, err
		}
		// A prefer is refused where it stands; combine would point at the whole call.
		if n.prefers() {
			return nil, p.at(at, refusePrefer(n))
		}
		ns = append(ns, n)
		if p.accept(")") {
			return combine(ns)
		}
		switch {
		case several && p.accept(";"):
		case several:
			return nil, p.unexpected(`",", ";" or ")"`)
		default:
			return nil, p.unexpected(`"," or ")"`)
		}
	}
}
