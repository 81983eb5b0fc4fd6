package aws

import (
	"errors"
	"net/http"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// gave gives the test for refusals of a service by their code.
func gave(service, code string) func(error) bool {
	return func(err error) bool {
		r, ok := errors.AsType[*refusal](err)
		return ok && r.service == service && r.code == code
	}
}

// hints are the errors for which AWS IoT is known, the more special first.
func hints() []northbound.Hint {
	denied := health.Meaning{Name: "aws-connect-denied", What: "AWS IoT does not let this client id in: the policy does not allow iot:Connect, or the authorizer said no",
		Hint: "allow iot:Connect on client/CLIENT_ID in the policy of the certificate or role; what CLIENT_ID is, `client_id` and `thing` say"}
	return []northbound.Hint{
		{Says: "closed the connection", Fits: mqtt.HungUp, Meaning: health.Meaning{Name: "aws-hung-up",
			What: "AWS closed the connection without a word: the certificate is not active, or its policy does not allow iot:Connect for this client id",
			Hint: "activate the certificate in AWS IoT, attach it to a policy that allows iot:Connect on client/CLIENT_ID, and look at `client_id`"}},
		{Says: "not authorized", Fits: mqtt.Said(0x87), Meaning: denied},
		{Says: "refused (0x07)", Fits: mqtt.Said(0x07), Meaning: denied},
		{Says: "session taken over", Fits: mqtt.Said(0x8E), Meaning: health.Meaning{Name: "aws-taken-over",
			What: "two gateways have one client id, and AWS lets in one after the other", Hint: "give each gateway a `client_id` of its own"}},
		{Says: "WebSocket refused: HTTP status 403", Fits: func(err error) bool {
			a, ok := errors.AsType[*health.Answer](err)
			return ok && a.Status == http.StatusForbidden
		}, Meaning: health.Meaning{Name: "aws-signature", What: "AWS does not take the signature of the request",
			Hint: "is `region` the endpoint's, is the clock right, and does the role's policy allow iot:Connect?"}},
		{Says: "no application protocol", Fits: func(err error) bool {
			a, ok := health.AlertOf(err)
			return ok && a == 120
		}, Meaning: health.Meaning{Name: "aws-alpn", Stays: true, What: "the endpoint's domain configuration does not take this way to log in at this port",
			Hint: "certificates log in at 8883 or 443, tokens at 443: look at `auth` and at the port of `endpoint`"}},
		{Says: "sts: ExpiredTokenException", Fits: gave("sts", "ExpiredTokenException"), Meaning: health.Meaning{Name: "aws-token-ended",
			What: "the token had ended before it was exchanged for credentials", Hint: "is the clock right? Look at the life of the tokens of `token`"}},
		{Says: "sts: InvalidIdentityToken", Fits: gave("sts", "InvalidIdentityToken"), Meaning: health.Meaning{Name: "aws-identity-provider",
			What: "IAM has no identity provider for the token's issuer, or cannot read the issuer's keys from the internet",
			Hint: "make an identity provider in IAM with the issuer's URL and the token's audience"}},
		{Says: "sts: IDPRejectedClaim", Fits: gave("sts", "IDPRejectedClaim"), Meaning: health.Meaning{Name: "aws-claim",
			What: "the role's trust policy asks for another audience or subject than the token's",
			Hint: "compare aud and sub of the token with the conditions in the trust policy of `role_arn`"}},
		{Says: "sts: AccessDenied", Fits: gave("sts", "AccessDenied"), Meaning: health.Meaning{Name: "aws-trust-policy",
			What: "the role's trust policy does not let this identity provider assume it",
			Hint: "allow sts:AssumeRoleWithWebIdentity for it in the trust policy of `role_arn`"}},
		{Says: "credentials provider: refused", Fits: gave("credentials provider", "refused"), Meaning: health.Meaning{Name: "aws-role-alias",
			What: "the credentials provider gives this certificate no credentials",
			Hint: "is the certificate active, does its policy allow iot:AssumeRoleWithCertificate on `role_alias`, and is the thing attached to it?"}},
	}
}
