<?php
/*
 * Two servers of WebDAV on SabreDAV, below one directory of this machine, which $ROOT names.
 *
 * What is below /remote.php/dav/ behaves as the published manual of Nextcloud says of chunked uploads,
 * version 2: files/USER has files, which take their times by a header, and uploads/USER has folders of
 * chunks. All else is what SabreDAV makes of a directory, with its PATCH.
 */

ini_set('display_errors', '0');
error_reporting(0);
require_once 'Sabre/autoload.php';

use Sabre\DAV;

/** SabreDAV's own keeps all that is told of a directory's files in one, which takes ages for many. */
trait Properties
{
    private function note()
    {
        return getenv('ROOT') . '/../notes/' . md5($this->path);
    }

    protected function getResourceData()
    {
        $data = @file_get_contents($this->note());
        return $data === false ? array('properties' => array()) : unserialize($data);
    }

    protected function putResourceData(array $data)
    {
        if ($data['properties']) {
            file_put_contents($this->note(), serialize($data));
        }
    }

    public function deleteResourceData()
    {
        @unlink($this->note());
        return true;
    }
}

class PatchedFile extends DAV\FSExt\File
{
    use Properties;
    use Tagged;
}

class PatchedDirectory extends DAV\FSExt\Directory
{
    use Properties;

    public function getChild($name)
    {
        $path = $this->path . '/' . $name;
        if (!file_exists($path)) {
            throw new DAV\Exception\NotFound('there is none');
        }
        return is_dir($path) ? new PatchedDirectory($path) : new PatchedFile($path);
    }
}

trait Tagged
{
    public function getETag()
    {
        clearstatcache();
        return '"' . fileinode($this->path) . '-' . filemtime($this->path) . '-' . filesize($this->path) . '"';
    }
}

/** Files that take their times from clients. */
class TimedFile extends DAV\FS\File
{
    use Tagged;
}

class TimedDirectory extends DAV\FS\Directory
{
    public function getChild($name)
    {
        $path = $this->path . '/' . $name;
        if (!file_exists($path)) {
            throw new DAV\Exception\NotFound('there is none');
        }
        return is_dir($path) ? new TimedDirectory($path) : new TimedFile($path);
    }
}

/** Chunks, which nobody reads. */
class Chunk extends DAV\FS\File
{
    public function get()
    {
        throw new DAV\Exception\MethodNotAllowed('chunks are not read');
    }
}

/** What the chunks of a folder amount to. */
class FutureFile extends DAV\File
{
    private $folder;

    public function __construct(Folder $folder)
    {
        $this->folder = $folder;
    }

    public function getName()
    {
        return '.file';
    }

    public function getSize()
    {
        return array_sum(array_map('filesize', $this->folder->chunks()));
    }

    public function get()
    {
        if ($_SERVER['REQUEST_METHOD'] !== 'MOVE') {
            throw new DAV\Exception\MethodNotAllowed('it is not read');
        }
        $whole = fopen('php://temp', 'r+');
        foreach ($this->folder->chunks() as $chunk) {
            stream_copy_to_stream(fopen($chunk, 'r'), $whole);
        }
        rewind($whole);
        return $whole;
    }

    public function delete()
    {
        $this->folder->delete();
    }
}

class Folder extends DAV\FS\Directory
{
    /** In the order of their names. */
    public function chunks()
    {
        clearstatcache();
        $chunks = glob($this->path . '/*');
        sort($chunks, SORT_STRING);
        return $chunks;
    }

    public function getChild($name)
    {
        $path = $this->path . '/' . $name;
        if ($name === '.file') {
            return new FutureFile($this);
        }
        if (!file_exists($path)) {
            throw new DAV\Exception\NotFound('there is none');
        }
        return new Chunk($path);
    }

    public function getChildren()
    {
        $names = array_map('basename', $this->chunks());
        return array_map(array($this, 'getChild'), array_merge($names, array('.file')));
    }

    public function createFile($name, $data = null)
    {
        $this->check($name);
        parent::createFile($name, $data);
    }

    public function createDirectory($name)
    {
        throw new DAV\Exception\Forbidden('only chunks are here');
    }

    public function delete()
    {
        array_map('unlink', $this->chunks());
        rmdir($this->path);
    }

    public function check($name)
    {
        if (!ctype_digit($name) || $name < 1 || $name > 10000) {
            throw new DAV\Exception\BadRequest('chunks are named by numbers from 1 to 10000');
        }
    }
}

class Folders extends DAV\FS\Directory
{
    public function getChild($name)
    {
        if (!is_dir($this->path . '/' . $name)) {
            throw new DAV\Exception\NotFound('there is none');
        }
        return new Folder($this->path . '/' . $name);
    }

    public function createFile($name, $data = null)
    {
        throw new DAV\Exception\Forbidden('only folders are here');
    }
}

/** What Nextcloud adds: times, and rules for chunks. */
class Cloud extends DAV\ServerPlugin
{
    private $server;
    private $root;
    private $least;

    public function __construct($root, $least)
    {
        $this->root = $root;
        $this->least = $least;
    }

    public function initialize(DAV\Server $server)
    {
        $this->server = $server;
        $server->subscribeEvent('beforeMethod', array($this, 'check'));
        $server->subscribeEvent('updateProperties', array($this, 'update'));
        foreach (array('afterCreateFile', 'afterWriteContent', 'afterBind') as $event) {
            $server->subscribeEvent($event, array($this, 'time'));
        }
    }

    public function check($method, $uri)
    {
        if (strpos($uri, 'uploads/') !== 0) {
            return true;
        }
        $to = $this->server->httpRequest->getHeader('Destination');
        if (in_array($method, array('MKCOL', 'PUT', 'MOVE')) && !$to) {
            throw new DAV\Exception\BadRequest('there is no Destination');
        }
        $size = $this->server->httpRequest->getHeader('OC-Total-Length');
        if (in_array($method, array('PUT', 'MOVE')) && !ctype_digit((string) $size)) {
            throw new DAV\Exception\BadRequest('there is no OC-Total-Length');
        }
        if ($method === 'MOVE') {
            $this->checkWhole($uri, $size);
        }
        return true;
    }

    private function checkWhole($uri, $size)
    {
        $file = $this->server->tree->getNodeForPath($uri);
        if (!$file instanceof FutureFile || $file->getSize() != $size) {
            throw new DAV\Exception\BadRequest('the chunks do not amount to ' . $size);
        }
        $chunks = $this->server->tree->getNodeForPath(dirname($uri))->chunks();
        array_pop($chunks);
        foreach ($chunks as $chunk) {
            if (filesize($chunk) < $this->least) {
                throw new DAV\Exception\BadRequest('a chunk is too short');
            }
        }
    }

    public function time($uri)
    {
        $mtime = $this->server->httpRequest->getHeader('X-OC-Mtime');
        $path = $this->root . '/' . $uri;
        if (ctype_digit((string) $mtime) && strpos($uri, 'files/') === 0 && is_file($path)) {
            touch($path, (int) $mtime);
            clearstatcache();
        }
        return true;
    }

    public function update(&$mutations, &$result, $node)
    {
        $name = '{DAV:}lastmodified';
        if (!isset($mutations[$name])) {
            return true;
        }
        $path = new ReflectionProperty('Sabre\DAV\FS\Node', 'path');
        $path->setAccessible(true);
        touch($path->getValue($node), (int) $mutations[$name]);
        clearstatcache();
        $result[200][$name] = null;
        unset($mutations[$name]);
        return true;
    }
}

$root = getenv('ROOT');
$cloud = '/remote.php/dav/';
if (strpos($_SERVER['REQUEST_URI'], $cloud) === 0) {
    $root .= $cloud;
    $users = function ($kind, $class) use ($root) {
        $nodes = array();
        foreach (glob($root . $kind . '/*', GLOB_ONLYDIR) as $path) {
            $nodes[] = new $class($path);
        }
        return new DAV\SimpleCollection($kind, $nodes);
    };
    $kinds = array($users('files', 'TimedDirectory'), $users('uploads', 'Folders'));
    $server = new DAV\Server(new DAV\SimpleCollection('dav', $kinds));
    $server->setBaseUri($cloud);
    // Of a user whose name is "short", chunks of any length are taken.
    $is_short = strpos($_SERVER['REQUEST_URI'], '/short/') !== false;
    $server->addPlugin(new Cloud(rtrim($root, '/'), $is_short ? 0 : 5000000));
} else {
    $server = new DAV\Server(new PatchedDirectory($root));
    $server->setBaseUri('/');
    $server->addPlugin(new DAV\PartialUpdate\Plugin());
}
$server->exec();
