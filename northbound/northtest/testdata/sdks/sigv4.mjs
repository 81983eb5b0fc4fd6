// A presigned URL as Amazon's SDK makes it. Arguments: HOST REGION ACCESS SECRET ISO-TIME SECONDS.
import { SignatureV4 } from '@smithy/signature-v4';
import { Sha256 } from '@aws-crypto/sha256-js';

const [, , host, region, accessKeyId, secretAccessKey, time, seconds] = process.argv;
const signer = new SignatureV4({ service: 'iotdevicegateway', region, credentials: { accessKeyId, secretAccessKey }, sha256: Sha256 });
const signed = await signer.presign(
  { method: 'GET', protocol: 'wss:', hostname: host, path: '/mqtt', headers: { host }, query: {} },
  { signingDate: new Date(time), expiresIn: Number(seconds) });
console.log(JSON.stringify(signed.query));
