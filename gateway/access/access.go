// Package access says who makes a call and what they may do. Operators have tokens of the shop's own (operators.go), customers
// and operators those of an OpenID Connect issuer (oidc.go). The contract of each method says who may call it, by the option
// shop.options.v1.access; Authorizer guards the handlers of a service accordingly.
package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/domain/email"
	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	accessv1 "shop.example/gen/shop/access/v1"
	optionsv1 "shop.example/gen/shop/options/v1"
	"shop.example/platform/apierror"
)

// Authorizer lets calls through that the option shop.options.v1.access of their method allows. A call with a token that is
// not valid is refused even if it needs no token: else the client's order would silently not be the client's own.
type Authorizer struct {
	operators Operators // by their tokens; empty if nobody is one
	// interceptor recovers a check that panics: the server's own gets to see a unary call only once it is allowed.
	interceptor *apierror.Interceptor

	login Login // may be nil

	tokens    *tokenVerifier // of an issuer's tokens; nil if there is no issuer
	customers bool           // public calls are for customers
}

// Login runs check, which verifies the token of a call, unless too many tokens from the same address were not valid. It
// returns the error of check.
type Login func(ctx context.Context, check func() error) error

// New returns an Authorizer that verifies tokens through login, or without it if that is nil.
func New(operators Operators, interceptor *apierror.Interceptor, login Login) *Authorizer {
	return &Authorizer{operators: operators, interceptor: interceptor, login: login}
}

// ConfigureOIDC accepts tokens of an issuer, too. Call it before any service is guarded. refreshKeys keeps the issuer's
// keys fresh until its context ends; it is nil if no issuer is configured.
func (a *Authorizer) ConfigureOIDC(cfg OIDC, log *slog.Logger, meter metric.Meter) (refreshKeys func(context.Context) error, err error) {
	if cfg.Issuer == "" {
		if cfg.RequireCustomer || cfg.Audience != "" || cfg.JWKSURL != "" {
			return nil, errors.New("OIDC_ISSUER is not set, but other OIDC_ variables are: set it, or unset them")
		}
		return nil, nil
	}
	tokens, err := newTokenVerifier(cfg, log)
	if err != nil {
		return nil, err
	}
	if err := tokens.observe(meter); err != nil {
		return nil, err
	}
	a.tokens, a.customers = tokens, cfg.RequireCustomer
	return tokens.run, nil
}

const (
	customer = "customer"
	operator = "operator"
	// owner is the role of whoever has a token of the issuer: what belongs to its subject is theirs.
	owner = "owner"
)

// Principal is who makes a call, by a token that is valid. It does not change.
type Principal struct {
	Name    string // of an operator with a token of the shop's own; "" for others
	Issuer  string // as it stands in the token; "" for an operator's own token
	Subject string // whom the issuer gave the token; "" for an operator's own token
	Roles   []string
	expires time.Time // zero for an operator's own token, which does not expire
}

// hasRole says whether the principal has a role. Operators have all roles; nil, which is nobody, has none.
func (p *Principal) hasRole(role string) bool {
	return p != nil && (role == owner && p.Issuer != "" || slices.Contains(p.Roles, role) || slices.Contains(p.Roles, operator))
}

// Owner is what an order keeps of who placed it: issuer and subject of the token; "" for nobody, and for an operator's
// own token.
func (p *Principal) Owner() string {
	if p == nil {
		return ""
	}
	return enduser.Owner(p.Issuer, p.Subject)
}

// OnBehalfOf returns a context for calls to other services: they are told who makes the call of ctx.
func OnBehalfOf(ctx context.Context) context.Context {
	c := &accessv1.EndUser{}
	if p := PrincipalOf(ctx); p != nil {
		c.Issuer, c.Subject, c.Operator, c.Name = p.Issuer, p.Subject, p.hasRole(operator), p.Name
	}
	return enduser.With(ctx, c)
}

// KeyScope is whose idempotency keys the principal uses: its own or, for nobody, those of the email address.
func (p *Principal) KeyScope(address string) string {
	switch {
	case p == nil:
		return "anybody " + email.Fold(address)
	case p.Issuer == "":
		return operator + " " + p.Name
	}
	return "subject " + p.Owner()
}

type principalKey struct{}

// PrincipalOf returns who makes the call of ctx; nil for nobody.
func PrincipalOf(ctx context.Context) *Principal {
	p, _ := ctx.Value(principalKey{}).(*Principal)
	return p
}

// WithPrincipal returns ctx for a call that p makes.
func WithPrincipal(ctx context.Context, p *Principal) context.Context {
	if p == nil {
		return ctx
	}
	return context.WithValue(ctx, principalKey{}, p)
}

// foreignRules are for services whose contracts are not ours. They are open to everybody, even if public calls are for
// customers: load balancers and grpcurl have no token, and what they learn is public anyway. They are not guarded, so a
// token is ignored.
var foreignRules = map[string]optionsv1.Access{
	"grpc.health.v1.Health":                    optionsv1.Access_ACCESS_PUBLIC,
	"grpc.reflection.v1.ServerReflection":      optionsv1.Access_ACCESS_PUBLIC,
	"grpc.reflection.v1alpha.ServerReflection": optionsv1.Access_ACCESS_PUBLIC,
}

// ruleOf returns who may call a method; ACCESS_UNSPECIFIED if its contract does not say.
func ruleOf(service, method string) optionsv1.Access {
	if rule, foreign := foreignRules[service]; foreign {
		return rule
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if err != nil {
		return optionsv1.Access_ACCESS_UNSPECIFIED
	}
	rule, _ := proto.GetExtension(d.Options(), optionsv1.E_Access).(optionsv1.Access)
	return rule
}

// CheckRules returns an error that names the methods whose contracts do not say who of those that a gateway serves may call them.
func CheckRules(served map[string]grpc.ServiceInfo) error {
	var without []string
	for service, info := range served {
		for _, m := range info.Methods {
			if rule := ruleOf(service, m.Name); rule == optionsv1.Access_ACCESS_UNSPECIFIED || rule == optionsv1.Access_ACCESS_INTERNAL {
				without = append(without, service+"/"+m.Name)
			}
		}
	}
	if len(without) == 0 {
		return nil
	}
	slices.Sort(without)
	return fmt.Errorf("nobody may call %s through a gateway: give each method the option shop.options.v1.access, and not ACCESS_INTERNAL", strings.Join(without, ", "))
}

// Guard returns the service with handlers that check access before anything else. Call it after ConfigureOIDC.
func (a *Authorizer) Guard(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	guarded := *desc
	guarded.Methods, guarded.Streams = nil, nil
	for _, m := range desc.Methods {
		m.Handler = a.guardUnary(ruleOf(desc.ServiceName, m.MethodName), m.Handler)
		guarded.Methods = append(guarded.Methods, m)
	}
	for _, s := range desc.Streams {
		s.Handler = a.guardStream(ruleOf(desc.ServiceName, s.StreamName), s.Handler)
		guarded.Streams = append(guarded.Streams, s)
	}
	return &guarded
}

func (a *Authorizer) guardUnary(rule optionsv1.Access, handler grpc.MethodHandler) grpc.MethodHandler {
	open := rule == optionsv1.Access_ACCESS_PUBLIC && !a.customers
	return func(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		given := authorizationIn(ctx)
		if open && len(given) == 0 {
			return handler(server, ctx, decode, interceptor)
		}
		checked := func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			var caller *Principal
			// Without the request, which is not validated yet: only who may make a call is told what is wrong with it.
			_, err := a.interceptor.Unary(ctx, nil, info, func(ctx context.Context, _ any) (_ any, err error) {
				caller, err = a.requireRole(ctx, a.roleFor(rule, request), given)
				return nil, err
			})
			if err != nil {
				return nil, err
			}
			ctx = WithPrincipal(ctx, caller)
			if interceptor == nil {
				return next(ctx, request)
			}
			return interceptor(ctx, request, info, next)
		}
		return handler(server, ctx, decode, checked)
	}
}

func (a *Authorizer) guardStream(rule optionsv1.Access, handler grpc.StreamHandler) grpc.StreamHandler {
	return func(server any, stream grpc.ServerStream) error {
		return handler(server, &guardedStream{
			ServerStream: stream, access: a, rule: rule, role: a.roleFor(rule, nil), given: authorizationIn(stream.Context()),
		})
	}
}

// guardedStream checks each request that is received, because the rule may depend on what it asks for, and checks again
// before each message is sent: a stream lasts longer than the token that opened it.
type guardedStream struct {
	grpc.ServerStream
	access *Authorizer
	rule   optionsv1.Access
	role   string          // that the last request needs; the streams of the contracts have one request
	given  []string        // what was sent to say who calls
	ctx    context.Context // with the principal; nil before the first request
}

// Context has the principal, once a request was received.
func (s *guardedStream) Context() context.Context {
	if s.ctx == nil {
		return s.ServerStream.Context()
	}
	return s.ctx
}

// RecvMsg receives a request and checks it.
func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	ctx := s.ServerStream.Context()
	s.role = s.access.roleFor(s.rule, m)
	caller, err := s.access.requireRole(ctx, s.role, s.given)
	s.ctx = WithPrincipal(ctx, caller)
	return err
}

// SendMsg sends a message if the caller's token is still valid.
func (s *guardedStream) SendMsg(m any) error {
	if s.role != "" || len(s.given) > 0 { // else the call needs no token, and has none
		if _, err := s.access.checkRole(s.ServerStream.Context(), s.role, s.given); err != nil {
			return err
		}
	}
	return s.ServerStream.SendMsg(m)
}

func authorizationIn(ctx context.Context) []string {
	return metadata.ValueFromIncomingContext(ctx, "authorization")
}

// CachedSubject says whom the token in the header is for; "" if it would have to be verified first.
func (a *Authorizer) CachedSubject(header http.Header) string {
	given := header["Authorization"]
	if len(given) != 1 {
		return ""
	}
	token := bearer(given[0])
	if name, ok := a.operators.find(token); ok {
		return "operator " + name
	}
	if a.tokens != nil && isJWT(token) {
		if p, ok := a.tokens.cached(token); ok {
			return "token of " + p.Subject
		}
	}
	return ""
}

// bearer is the token of an Authorization header; "" if it has another scheme.
func bearer(authorization string) string {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

func isJWT(token string) bool { return strings.Count(token, ".") == 2 }

// roleFor is the role that a request needs, "" for none. An owner has to be a customer if customers are required.
func (a *Authorizer) roleFor(rule optionsv1.Access, request any) string {
	if rule == optionsv1.Access_ACCESS_OPERATOR_OR_ORDER_ID {
		if m, ok := request.(proto.Message); ok && orderid.Of(m) != "" {
			rule = optionsv1.Access_ACCESS_PUBLIC
		}
	}
	switch {
	case rule == optionsv1.Access_ACCESS_OPERATOR_OR_OWNER && a.tokens != nil && a.customers:
		return customer
	case rule == optionsv1.Access_ACCESS_OPERATOR_OR_OWNER && a.tokens != nil:
		return owner
	case rule != optionsv1.Access_ACCESS_PUBLIC:
		return operator
	case a.customers:
		return customer
	}
	return ""
}

// RequireOperator returns an error unless the values of authorization are those of an operator.
func (a *Authorizer) RequireOperator(ctx context.Context, given []string) error {
	_, err := a.requireRole(ctx, operator, given)
	return err
}

// requireRole is checkRole for a call that begins: with a token, that is a login.
func (a *Authorizer) requireRole(ctx context.Context, role string, given []string) (*Principal, error) {
	if len(given) == 0 || a.login == nil {
		return a.checkRole(ctx, role, given)
	}
	var caller *Principal
	err := a.login(ctx, func() (err error) {
		caller, err = a.checkRole(ctx, role, given)
		return err
	})
	return caller, err
}

// checkRole returns who calls, by the values of authorization, and an error unless they have the role. Everybody has the
// role "", but a token that is not valid is an error all the same.
func (a *Authorizer) checkRole(ctx context.Context, role string, given []string) (*Principal, error) {
	caller, err := a.authenticate(ctx, given)
	switch {
	case err != nil:
		return nil, err
	case role == "" || caller.hasRole(role):
		return caller, nil
	case caller != nil:
		return nil, apierror.New(codes.PermissionDenied, "ROLE_REQUIRED", "the token is valid, but does not give the role %s", role).
			WithMetadata("role", role)
	case role == customer || role == owner:
		return nil, apierror.New(codes.Unauthenticated, "CUSTOMER_TOKEN_REQUIRED",
			"this call is for customers: send the token of the issuer as authorization: Bearer <token>")
	}
	return nil, apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_REQUIRED",
		"this call is for operators: send the operator token as authorization: Bearer <token>")
}

// authenticate returns whose token the values of authorization are; nil if there are none.
func (a *Authorizer) authenticate(ctx context.Context, given []string) (*Principal, error) {
	if len(given) == 0 {
		return nil, nil
	}
	if len(given) == 1 {
		token := bearer(given[0])
		if name, ok := a.operators.find(token); ok {
			return &Principal{Name: name, Roles: []string{operator}}, nil
		}
		if a.tokens != nil && isJWT(token) {
			return a.tokens.verify(ctx, token)
		}
	}
	return nil, apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_INVALID",
		"the operator token is not valid; a call that needs no token has to be sent without one")
}
