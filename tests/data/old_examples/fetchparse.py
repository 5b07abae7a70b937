"""A spider that follows links: one task for each page."""

import sys
import time

from ipytaskfarm import client
from ipytaskfarm.client import Failure

fetchParse = """
from html.parser import HTMLParser
from urllib.parse import urljoin
from urllib.request import urlopen

class Anchors(HTMLParser):
    def __init__(self):
        HTMLParser.__init__(self)
        self.links = []
    def handle_starttag(self, tag, attrs):
        if tag == 'a' and dict(attrs).get('href'):
            self.links.append(dict(attrs)['href'])

def fetchAndParse(url, data=None):
    links = []
    page = urlopen(url, data=data)
    if page.headers.get_content_type() == 'text/html':
        doc = Anchors()
        doc.feed(page.read().decode())
        for link in doc.links:
            links.append(urljoin(url, link))
    return links
"""


class DistributedSpider(object):

    # Time to wait between polling for task results.
    pollingDelay = 0.05

    def __init__(self, site):
        self.tc = client.TaskClient()
        self.rc = client.MultiEngineClient()
        self.rc.execute(fetchParse)
        self.allLinks = []
        self.linksWorking = {}
        self.linksDone = {}
        self.site = site

    def visitLink(self, url):
        if url not in self.allLinks:
            self.allLinks.append(url)
            if url.startswith(self.site.rsplit("/", 1)[0]):
                self.linksWorking[url] = self.tc.run(
                    client.StringTask("links = fetchAndParse(url)", pull=["links"], push={"url": url})
                )

    def onVisitDone(self, result, url):
        print(url.rsplit("/", 1)[1], ":", end=" ")
        self.linksDone[url] = None
        del self.linksWorking[url]
        if isinstance(result.failure, Failure):
            txt = result.failure.getTraceback()
            print(txt.rstrip().split("\n")[-1].split(":")[0])
        else:
            print(len(result.ns.links))
            for link in result.ns.links:
                self.visitLink(link)

    def run(self):
        self.visitLink(self.site)
        while self.linksWorking:
            self.synchronize()
            time.sleep(self.pollingDelay)

    def synchronize(self):
        for url, taskId in list(self.linksWorking.items()):
            result = self.tc.get_task_result(taskId, block=False)
            if result is not None:
                self.onVisitDone(result, url)


def main():
    distributedSpider = DistributedSpider(input(""))
    distributedSpider.run()
    print("Visited:", len(distributedSpider.linksDone), "of", len(distributedSpider.allLinks))


if __name__ == "__main__":
    main()
