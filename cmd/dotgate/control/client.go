package control

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

// A Client talks to the gateway of this machine.
type Client struct{ web *http.Client }

// NewClient returns a client of the gateway at the first of the places where one
// is. It does not connect yet.
func NewClient(places []string) *Client {
	return &Client{web: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return connect(ctx, places)
		},
	}}}
}

// connect connects to the first place where somebody is, and checks that it is
// one whom we may believe: anybody may make sockets among the temporary files.
func connect(ctx context.Context, places []string) (net.Conn, error) {
	var problems []string
	for _, path := range places {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", path, plain(err)))
			continue
		}
		uid, err := peer(conn.(*net.UnixConn))
		if self := os.Geteuid(); err == nil && (uid == self || uid == 0 || self == 0 && len(places) == 1) {
			return conn, nil
		}
		conn.Close()
		problems = append(problems, fmt.Sprintf("%s: it is of user %d", path, uid))
	}
	return nil, fmt.Errorf("no gateway is to be found (setting control.socket): %s", strings.Join(problems, "; "))
}

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	body, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return status, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&status); err != nil {
		return status, fmt.Errorf("read the gateway's status: %w", err)
	}
	return status, nil
}

// Order sets what the operator wants of an upstream, and returns the status then.
func (c *Client) Order(ctx context.Context, upstream string, o health.Order) (Status, error) {
	var status Status
	body, err := c.do(ctx, http.MethodPost, "/upstreams/"+url.PathEscape(upstream)+"/"+o.String(), nil)
	if err != nil {
		return status, err
	}
	defer body.Close()
	return status, json.NewDecoder(body).Decode(&status)
}

// Reload has the configuration read again.
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	var done Reloaded
	body, err := c.do(ctx, http.MethodPost, "/reload", nil)
	if err != nil {
		return done, err
	}
	defer body.Close()
	return done, json.NewDecoder(body).Decode(&done)
}

// Explain has a name asked for, and explained.
func (c *Client) Explain(ctx context.Context, name, recordType string) (e Explanation, err error) {
	asked := url.Values{"name": {name}, "type": {recordType}}
	return e, c.get(ctx, "/explain?"+asked.Encode(), &e)
}

// Stories asks for those of queries that failed or were sent more than once.
func (c *Client) Stories(ctx context.Context) (all []Explanation, err error) {
	return all, c.get(ctx, "/explain", &all)
}

// Yield has the gateway stop, because another one serves already.
func (c *Client) Yield(ctx context.Context) (pid int, err error) {
	body, err := c.do(ctx, http.MethodPost, "/yield", nil)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return pid, json.NewDecoder(body).Decode(&pid)
}

func (c *Client) get(ctx context.Context, path string, value any) error {
	body, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(value)
}

// Drill asks for a drill and blocks until it is over. When ctx is done the drill
// ends at once, without a report. Tell gets news as it comes.
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
			return Report{}, errors.New("the gateway went away, and the drill with it")
		case err != nil:
			return Report{}, fmt.Errorf("read news of the drill: %w", err)
		case e.Report != nil:
			return *e.Report, nil
		case e.Error != "":
			return Report{}, errors.New(e.Error)
		}
		tell(e.Text)
	}
}

// EndDrill ends the drill under way, whoever asked for it. Its report still comes.
func (c *Client) EndDrill(ctx context.Context) error {
	body, err := c.do(ctx, http.MethodDelete, "/drill", nil)
	if err == nil {
		body.Close()
	}
	return err
}

// do returns the body of an answer that is OK.
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
		return nil, errors.Unwrap(err) // without the URL, which is none that anybody knows
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	var f failure
	if json.NewDecoder(io.LimitReader(response.Body, answerSize)).Decode(&f) != nil || f.Error == "" {
		f.Error = "the gateway says " + response.Status
	}
	return nil, errors.New(f.Error)
}
