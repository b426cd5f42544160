package consul

import (
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	maxSecrets   = 8   // tokens remembered, so that the answer to a request with the last one is scrubbed too
	maxErrorText = 400 // bytes of an answer's text that stand in an error; proxies send whole pages
)

// secrets knows the tokens in use and keeps them out of errors. It stands behind a pointer wherever it is used,
// because fmt does not follow those. It is safe for concurrent use.
type secrets struct {
	file string // of the token; empty if it never changes

	mu      sync.Mutex // guards what follows
	current string     // the token to send; empty leaves it to the client
	known   []string   // what must not be shown, newest last
}

// token returns the token for the next request: what the file says now, else the last one.
func (s *secrets) token() string {
	if s.file != "" {
		if token, err := readToken(s.file); err == nil {
			s.use(token)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// use makes token the one to send.
func (s *secrets) use(token string) {
	s.hide(token)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = token
}

// hide makes text, if it is not empty, one that must not be shown.
func (s *secrets) hide(text string) {
	if text == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.known, text); i >= 0 {
		s.known = slices.Delete(s.known, i, i+1)
	}
	s.known = append(s.known, text)
	s.known = s.known[max(0, len(s.known)-maxSecrets):]
}

// clean returns err without anything secret in its text, which is also cut to a length that fits a log. An error
// that is fine is returned as it is, so that callers can look into it.
func (s *secrets) clean(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	clean := s.cleanText(text)
	if len(clean) > maxErrorText {
		clean = strings.ToValidUTF8(clean[:maxErrorText], "") + "..."
	}
	if clean == text {
		return err
	}
	return errors.New(clean)
}

func (s *secrets) cleanText(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.known {
		quoted := strconv.Quote(secret)
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), quoted[1 : len(quoted)-1]} {
			text = strings.ReplaceAll(text, form, "(not shown)")
		}
	}
	return text
}
