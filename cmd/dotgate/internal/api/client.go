package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"dotgate/health"
)

// A Client calls the running gateway of this machine.
type Client struct{ web *http.Client }

// Values of control.socket other than a path.
const (
	SocketAuto = "auto"
	SocketOff  = "off"
)

// Find returns a client of the gateway whose control.socket is this, in a configuration
// file with this name, or was when it read the file. It does not connect yet.
func Find(socket, file string) (*Client, error) {
	switch socket {
	case SocketOff:
		return nil, errors.New("control.socket is off: the running gateway can't be asked")
	case SocketAuto:
		return NewClient(Published(file), Places()), nil
	}
	return NewClient(Published(file), []string{socket}), nil
}

// NewClient returns a client of the gateway to which one of the published symlinks
// leads or, if none does, of the gateway at the first of the places where one is. It
// does not connect yet.
func NewClient(published, places []string) *Client {
	return &Client{web: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return connect(ctx, published, places)
		},
	}}}
}

func connect(ctx context.Context, published, places []string) (net.Conn, error) {
	for _, link := range published {
		if conn, err := dial(ctx, link, false); err == nil {
			return conn, nil
		}
	}
	var problems []string
	for _, path := range places {
		conn, err := dial(ctx, path, len(places) == 1)
		if err == nil {
			return conn, nil
		}
		problems = append(problems, err.Error())
	}
	return nil, fmt.Errorf("no running gateway found (control.socket): %s", strings.Join(problems, "; "))
}

// dial connects to a gateway of this user or of root: any user may make sockets among
// the temporary files. Where the operator named the socket, root believes any user.
func dial(ctx context.Context, path string, named bool) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, plain(err))
	}
	uid, err := peer(conn.(*net.UnixConn))
	if self := os.Geteuid(); err == nil && (uid == self || uid == 0 || self == 0 && named) {
		return conn, nil
	}
	conn.Close()
	return nil, fmt.Errorf("%s: the socket belongs to user %d", path, uid)
}

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/status")
}

// SetAdminState sets the AdminState of an upstream, and returns the status after that.
func (c *Client) SetAdminState(ctx context.Context, upstream string, a health.AdminState) (Status, error) {
	return call[Status](ctx, c, http.MethodPost, "/upstreams/"+url.PathEscape(upstream)+"/"+a.String())
}

// Reload makes the gateway read its configuration again.
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	return call[Reloaded](ctx, c, http.MethodPost, "/reload")
}

// Health asks for what a health check needs to know.
func (c *Client) Health(ctx context.Context) (Health, error) {
	return call[Health](ctx, c, http.MethodGet, "/health")
}

// Explain makes the gateway send a query and returns its steps.
func (c *Client) Explain(ctx context.Context, name, recordType string) (Explanation, error) {
	asked := url.Values{"name": {name}, "type": {recordType}}
	return call[Explanation](ctx, c, http.MethodGet, "/explain?"+asked.Encode())
}

// RecentQueries returns the latest queries that failed or were sent more than once.
func (c *Client) RecentQueries(ctx context.Context) ([]Explanation, error) {
	return call[[]Explanation](ctx, c, http.MethodGet, "/explain")
}

// Cached returns the entries for a name in presentation format, of all types and flags.
func (c *Client) Cached(ctx context.Context, name string) ([]CachedAnswer, error) {
	return call[[]CachedAnswer](ctx, c, http.MethodGet, "/cache?"+url.Values{"name": {name}}.Encode())
}

// Flush removes the entries for a name or, with subtree, for all names below it as well.
// It returns their number.
func (c *Client) Flush(ctx context.Context, name string, subtree bool) (int, error) {
	about := url.Values{"name": {name}}
	if subtree {
		about.Set("subtree", "true")
	}
	done, err := call[Flushed](ctx, c, http.MethodDelete, "/cache?"+about.Encode())
	return done.Answers, err
}

// Yield makes the gateway stop, because another one serves already. It returns its
// process ID.
func (c *Client) Yield(ctx context.Context) (pid int, err error) {
	return call[int](ctx, c, http.MethodPost, "/yield")
}

// call returns the decoded response to a request without content.
func call[T any](ctx context.Context, c *Client, method, path string) (response T, err error) {
	body, err := c.do(ctx, method, path, nil)
	if err != nil {
		return response, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&response); err != nil {
		return response, fmt.Errorf("read the gateway's response: %w", err)
	}
	return response, nil
}

// Drill runs a drill and returns its report. It blocks. When ctx is done the drill ends at
// once, without a report. tell gets progress messages.
func (c *Client) Drill(ctx context.Context, r Request, tell func(text string)) (Report, error) {
	body, err := c.do(ctx, http.MethodPost, "/drill", r)
	if err != nil {
		return Report{}, err
	}
	defer body.Close()
	events := json.NewDecoder(body)
	for {
		var e Event
		err := events.Decode(&e)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return Report{}, errors.New("the connection to the gateway was lost, which ended the drill")
		case err != nil:
			return Report{}, fmt.Errorf("read the progress of the drill: %w", err)
		case e.Report != nil:
			return *e.Report, nil
		case e.Error != "":
			return Report{}, errors.New(e.Error)
		}
		tell(e.Text)
	}
}

// EndDrill ends the running drill, whichever client began it. Its report is still sent.
func (c *Client) EndDrill(ctx context.Context) error {
	body, err := c.do(ctx, http.MethodDelete, "/drill", nil)
	if err == nil {
		body.Close()
	}
	return err
}

// do returns the body of a response with status OK.
func (c *Client) do(ctx context.Context, method, path string, what any) (io.ReadCloser, error) {
	var content io.Reader = http.NoBody
	if what != nil {
		text, err := json.Marshal(what)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, content)
	if err != nil {
		return nil, err
	}
	response, err := c.web.Do(request)
	if err != nil {
		return nil, errors.Unwrap(err) // without the URL, which is not a real one
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	var f failure
	if json.NewDecoder(io.LimitReader(response.Body, answerSize)).Decode(&f) != nil || f.Error == "" {
		f.Error = "the gateway responded " + response.Status
	}
	return nil, errors.New(f.Error)
}
